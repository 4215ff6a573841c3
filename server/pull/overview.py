"""Every configured model and how much of it is here."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from server.catalog import Catalog, ModelFile, Source
from server.pull import pull_folder
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


def overview(catalog: Catalog, data: Path, families: Collection[str]) -> list[Row]:
    """By id."""
    offered = {spec.id: spec for spec in catalog.models()}
    rows = []
    for id_, model in catalog.configured.items():
        spec = offered.get(id_)
        real = spec is not None and spec.demo is None
        files = [] if not real or spec is None else [*([spec.file] if spec.file else []), *spec.components.values()]
        folder = pull_folder(model, data)
        record = read_record(folder)
        rows.append(
            Row(
                id=id_,
                state=_state(model, folder, families, real=real, pulled=record is not None, demo=spec is not None),
                size=sum(file.stat().st_size for file in {*_below(folder), *files}),
                pull_gb=None if model.source is None or real else model.source.size_gb,
                hub="" if model.source is None else model.source.hub,
                licence="" if model.source is None else _licence(model.source),
                commit="" if record is None else record.commit[:12],
            )
        )
    return rows


def _state(model: ModelFile, folder: Path, families: Collection[str], *, real: bool, pulled: bool, demo: bool) -> str:
    here = "pulled" if pulled else "here" if real else ""
    if model.family not in families:
        return f"{here}, not built yet".removeprefix(", ")
    if real:
        return here
    if folder.with_name(f".{folder.name}.part").is_dir():
        return "partly pulled"
    if pulled and model.weights.base is not None:
        return f"pulled, {model.weights.base} is missing"
    return "demo" if demo else "not here"


def _licence(source: Source) -> str:
    return f"{source.licence or ''}{' (gated)' if source.gated else ''}".strip()


def _below(folder: Path) -> list[Path]:
    return [file for file in folder.rglob("*") if file.is_file()]
