"""Real weights from the hub: ``./latentd pull``, and what is here: ``./latentd models``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from server.catalog import Catalog, ModelFile, Source
from server.catalog.auxiliary_files import AuxiliaryFile
from server.catalog.files import DIFFUSERS_FILES, NAME
from server.catalog.weights import FAMILY_MARKS
from server.config import nearest
from server.pull.auxiliary import auxiliary_home, find_auxiliary_file, pull_auxiliary
from server.pull.errors import PullError
from server.pull.home import OwnFolder
from server.pull.hub import Hub
from server.pull.record import Wish
from server.pull.stage import Progress, pull_files

__all__ = ["PullError", "Pulled", "pull", "pull_home"]

#: What a family needs that does not come as a diffusers folder.
_FILES: Mapping[str, tuple[str, ...]] = {"florence2": ("*.json", "*.txt", "*.safetensors")}
#: Families whose answers are no pictures, so that there is nothing to check.
_UNCHECKED = frozenset({"florence2"})
#: The id in ``configs/aux`` of what looks at the pictures of all others.
_CHECKER = "safety-checker"


@dataclass(frozen=True, kw_only=True)
class Pulled:
    """What a pull came to."""

    #: Of the model, or of what is beside models.
    id: str
    #: False: all of it was here already.
    came: bool
    warnings: tuple[str, ...] = ()


def pull(
    name: str,
    catalog: Catalog,
    auxiliaries: Mapping[str, AuxiliaryFile],
    data: Path,
    progress: Progress,
    *,
    family: str | None = None,
    update: bool = False,
    checker: bool = True,
) -> Pulled:
    """Brings a model, or something beside models, and what it cannot do without, as far as it is not here.

    ``name`` is an id, an alias, or the hub id of a repository; one that no model file names needs its ``family`` and
    gets a model file in ``data/models``. ``update`` moves to the revision's newest commit. ``checker``: models that
    draw bring the safety checker along. Raises ``PullError``.
    """
    model = catalog.find_configured(name)
    new = model is None and "/" in name
    if model is None and (one := find_auxiliary_file(name, auxiliaries)) is not None:
        return Pulled(id=one.id, came=pull_auxiliary(one, auxiliaries, data, progress, update=update))
    if model is None:
        model = _describe(name, family, catalog, auxiliaries)
    came = _pull_model(model, catalog, data, progress, update=update)
    if new:
        _write_model_file(model, data)
    checked = checker and model.family not in _UNCHECKED
    warnings = _pull_checker(catalog, auxiliaries, data, progress) if checked else ()
    return Pulled(id=model.id, came=came, warnings=warnings)


def pull_home(model: ModelFile, data: Path) -> OwnFolder:
    """Where its files come to lie."""
    weights = model.weights
    name = weights.folder if weights.folder and weights.file is None else model.id
    return OwnFolder(folder=data / "models" / name)


def _pull_checker(
    catalog: Catalog, auxiliaries: Mapping[str, AuxiliaryFile], data: Path, progress: Progress
) -> tuple[str, ...]:
    """What went wrong: pictures can be drawn without it."""
    one = auxiliaries[_CHECKER]
    here = catalog.checker()
    if here is not None and here.demo is None and here.folder != auxiliary_home(one, data).folder:
        return ()
    try:
        pull_auxiliary(one, auxiliaries, data, progress)
    except PullError as error:
        return (f"the safety checker was not pulled ({error}): ./latentd pull {one.id} tries again",)
    return ()


def _pull_model(model: ModelFile, catalog: Catalog, data: Path, progress: Progress, *, update: bool) -> bool:
    came = False
    if model.weights.base is not None:
        base = catalog.configured[model.weights.base]
        # Weights of the operator's own serve as well.
        if base.id not in _offered_for_real(catalog):
            came = _pull_model(base, catalog, data, progress, update=False)
    if model.source is None:
        raise PullError(f"{model.id} has no [source]: its weights are put into {data / 'models'} by hand")
    wish = _wish(model.source, model.family, model.dtype)
    return pull_files(model.id, wish, pull_home(model, data), Hub(), progress, update=update) or came


def _offered_for_real(catalog: Catalog) -> Iterable[str]:
    return {model.id for model in catalog.models() if model.demo is None}


def _wish(source: Source, family: str, dtype: str) -> Wish:
    patterns = source.files or _FILES.get(family, DIFFUSERS_FILES)
    variant = source.variant or ("" if dtype == "float32" else "fp16")
    return Wish(
        hub=source.hub,
        revision=source.revision,
        variant=variant,
        patterns=tuple(patterns),
        needs_all=source.files is not None,
    )


def _describe(hub: str, family: str | None, catalog: Catalog, auxiliaries: Mapping[str, AuxiliaryFile]) -> ModelFile:
    """The model of a repository that no file names; its id is the repository's name."""
    if "/" not in hub:
        known = {one for model in catalog.configured.values() for one in model.names}
        raise PullError(f"no model {hub}{nearest(hub, known.union(auxiliaries))}")
    if not re.fullmatch(NAME, hub):
        raise PullError(f"{hub[:100]!r} is no hub id (owner/name)")
    if family is None:
        raise PullError(f"{hub} is in no model file: say what it is with --family {'|'.join(FAMILY_MARKS)}")
    if family not in FAMILY_MARKS:
        raise PullError(f"unknown family {family!r}{nearest(family, FAMILY_MARKS)}")
    id_ = hub.partition("/")[2]
    if (other := catalog.find_configured(id_)) is not None:
        raise PullError(f"the name {id_} is taken by the model {other.id}: write a model file of another id for {hub}")
    return ModelFile(id=id_, family=family, source=Source(hub=hub))


def _write_model_file(model: ModelFile, data: Path) -> None:
    assert model.source is not None
    text = f'id = "{model.id}"\nfamily = "{model.family}"\nsource.hub = "{model.source.hub}"\n'
    new = data / "models" / f".{model.id}.toml"
    new.write_text(text, encoding="utf-8")
    # A server that runs must not read half of it.
    new.replace(data / "models" / f"{model.id}.toml")
