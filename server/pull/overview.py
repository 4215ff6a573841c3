"""Every configured model, everything beside the models, and how much of it is here."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from pipelines.auxiliary import AuxiliaryKind
from server.catalog import Catalog, ModelFile, Source
from server.catalog.auxiliaries import Auxiliaries
from server.catalog.auxiliary_files import KINDS, AuxiliaryFile
from server.pull import pull_home
from server.pull.auxiliary import auxiliary_home
from server.pull.home import OwnFolder
from server.pull.record import read_record


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of ``./latentd models``."""

    id: str
    state: str
    #: Bytes, where there are any.
    size: int
    #: What a pull will take, in 10^9 bytes, where that is known.
    pull_gb: float | None
    hub: str
    licence: str
    #: Of what was pulled.
    commit: str
    #: Of what is beside models: a key of ``KINDS``.
    kind: str = ""


def overview(catalog: Catalog, data: Path, families: Collection[str]) -> list[Row]:
    """By id."""
    offered = {spec.id: spec for spec in catalog.models()}
    rows = []
    for id_, model in catalog.configured.items():
        spec = offered.get(id_)
        real = spec is not None and spec.demo is None
        files: list[Path] = []
        if real and spec is not None:
            files = [*([spec.file] if spec.file else []), *spec.components.values(), *spec.loras]
        home = pull_home(model, data)
        record = read_record(home.record)
        rows.append(
            Row(
                id=id_,
                state=_state(model, home, families, real=real, pulled=record is not None, demo=spec is not None),
                size=sum(file.stat().st_size for file in {*_below(home.folder), *files}),
                pull_gb=None if model.source is None or real else model.source.size_gb,
                hub="" if model.source is None else model.source.hub,
                licence="" if model.source is None else _licence(model.source),
                commit="" if record is None else record.commit[:12],
            )
        )
    return rows


def auxiliary_overview(catalog: Catalog, files: Mapping[str, AuxiliaryFile], data: Path) -> list[Row]:
    """By kind and id: what ``configs/aux`` names, and whatever else lies in the folders."""
    names = {kind: name for name, kind in KINDS.items() if kind is not None}
    here = {(names[kind], one.name): one.size for kind in AuxiliaryKind for one in Auxiliaries(data).of(kind)}
    checker = catalog.checker()
    if checker is not None and checker.demo is None:
        here |= {(one.kind, one.id): _size(checker.folder) for one in files.values() if KINDS[one.kind] is None}
    rows = [_auxiliary_row(one, data, here.pop((one.kind, one.id), None)) for one in files.values()]
    rows += [
        Row(id=name, kind=kind, state="here", size=size, pull_gb=None, hub="", licence="", commit="")
        for (kind, name), size in here.items()
    ]
    return sorted(rows, key=lambda row: (row.kind, row.id))


def _auxiliary_row(one: AuxiliaryFile, data: Path, size: int | None) -> Row:
    home = auxiliary_home(one, data)
    record = read_record(home.record)
    if size is not None:
        state = "here" if record is None else "pulled"
    elif home.stage.is_dir():
        state = "partly pulled"
    else:
        state = "not here" if one.pickle is None else "not here, to be converted"
    return Row(
        id=one.id,
        kind=one.kind,
        state=state,
        size=size or 0,
        pull_gb=None if one.source is None or size is not None else one.source.size_gb,
        hub="" if one.source is None else one.source.hub,
        licence=one.licence if one.source is None else _licence(one.source),
        commit="" if record is None or size is None else record.commit[:12],
    )


def _state(
    model: ModelFile, home: OwnFolder, families: Collection[str], *, real: bool, pulled: bool, demo: bool
) -> str:
    here = "pulled" if pulled else "here" if real else ""
    if model.family not in families:
        return f"{here}, not built yet".removeprefix(", ")
    if real:
        return here
    if home.stage.is_dir():
        return "partly pulled"
    if pulled and model.weights.base is not None:
        return f"pulled, {model.weights.base} is missing"
    return "demo" if demo else "not here"


def _licence(source: Source) -> str:
    return f"{source.licence or ''}{' (gated)' if source.gated else ''}".strip()


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in _below(folder))


def _below(folder: Path) -> list[Path]:
    return [file for file in folder.rglob("*") if file.is_file()]
