"""What the files at one moment offer: real models whose weights are there, stand-ins for the others."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from pipelines.model import Limits, ModelSpec
from pipelines.registry import LOOKING
from pipelines.request import Task
from pipelines.safety import CheckerFiles
from server.catalog.checker import find_checker, watched_for_checkers
from server.catalog.files import DemoFile, ModelFile, read_model
from server.catalog.weights import FAMILY_MARKS, is_whole
from server.config import ConfigError, nearest

_M = TypeVar("_M", bound=ModelFile)

#: Told of each file in the data folder that cannot be used; None = it is fine.
Report = Callable[[Path, ConfigError | None], None]


@dataclass(frozen=True, kw_only=True)
class Offer:
    """One reading of all model files."""

    #: What can be drawn with, by id.
    models: tuple[ModelSpec, ...]
    #: All that is configured, by id: also without weights, and of families that are not built.
    configured: Mapping[str, ModelFile] = field(default_factory=dict)
    #: The safety checker for all of them; None: its weights are not here.
    checker: CheckerFiles | None = None
    #: Whatever changes the offer when it changes.
    watched: tuple[Path, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Places:
    """The folders that are read."""

    configs: Path
    data: Path

    @property
    def models(self) -> Path:
        """Pulled and dropped weights, and the model files that come with them."""
        return self.data / "models"

    def skeleton(self, family: str) -> Path:
        """Configurations and tokenizers for checkpoints that are one file."""
        return self.configs / "skeletons" / family


@dataclass(frozen=True, kw_only=True)
class _Located:
    """Where a model's weights should be."""

    folder: Path
    file: Path | None = None
    components: Mapping[str, Path]
    loras: tuple[Path, ...] = ()
    #: The file by which ``folder`` is known to be there; None where it holds no weights.
    mark: Path | None

    @property
    def safetensors(self) -> tuple[Path, ...]:
        return (*(() if self.file is None else (self.file,)), *self.components.values(), *self.loras)

    @property
    def there(self) -> bool:
        return (self.mark is None or self.mark.is_file()) and all(map(is_whole, self.safetensors))


def read_offer(places: Places, families: Collection[str], report: Report) -> Offer:
    """Reads ``configs/models``, ``data/models`` and ``configs/demo``.

    Raises ``ConfigError`` for what the checkout has; a file of the data folder that cannot be used is reported and
    left out, for it may be half written, and a server that runs must not fall over it.
    """
    models = _read_models(places, families, report)
    demos = [(file, _read(file, DemoFile, families)) for file in _tomls(places.configs / "demo")]
    located = {id_: _locate(model, models, places) for id_, (_, model) in models.items()}
    offered = [
        _spec(model, located[id_])
        for id_, (_, model) in models.items()
        if model.family in families and located[id_].there
    ]
    offered += _stand_ins(demos, models, families, places, real={spec.id for spec in offered})
    return Offer(
        models=tuple(sorted(offered, key=lambda spec: spec.id)),
        configured={id_: model for id_, (_, model) in sorted(models.items())},
        checker=find_checker(places.models, offered, report),
        watched=(
            *_watched(places, [file for file, _ in demos], models.values(), located.values()),
            *watched_for_checkers(places.models),
        ),
    )


def _read_models(places: Places, families: Collection[str], report: Report) -> dict[str, tuple[Path, ModelFile]]:
    """Model files by id; names clash nowhere and every reference leads somewhere."""
    models: dict[str, tuple[Path, ModelFile]] = {}
    owners: dict[str, Path] = {}
    dropped = _tomls(places.models)
    for file in [*_tomls(places.configs / "models"), *dropped]:
        try:
            model = _read(file, ModelFile, families)
            _refuse_taken(owners, file, model.names)
        except ConfigError as error:
            if file not in dropped:
                raise
            report(file, error)
            continue
        owners |= {name.lower(): file for name in model.names}
        models[model.id] = (file, model)
    while broken := _find_broken_reference(models):
        id_, reason = broken
        file, _ = models.pop(id_)
        if file not in dropped:
            raise reason
        report(file, reason)
    for file in {file for file, _ in models.values()}.intersection(dropped):
        report(file, None)
    return models


def _find_broken_reference(models: Mapping[str, tuple[Path, ModelFile]]) -> tuple[str, ConfigError] | None:
    """A model whose ``base`` or ``fallback`` does not stand on its own weights."""
    for file, model in models.values():
        for key, name in (("weights.base", model.weights.base), ("fallback", model.fallback)):
            if name is not None and name not in models:
                return model.id, ConfigError(f"{file}: {key} = {name!r} is no model{nearest(name, models)}")
        if model.weights.base is not None:
            base = models[model.weights.base][1]
            if base.weights.base is not None:
                return model.id, ConfigError(f"{file}: weights.base = {base.id!r} has a base itself; name that one")
            if base.family != model.family:
                return model.id, ConfigError(f"{file}: weights.base = {base.id!r} is of the family {base.family}")
    return None


def _refuse_taken(owners: Mapping[str, Path], file: Path, names: Iterable[str]) -> None:
    """Raises ``ConfigError`` for a name that another model has."""
    for name in names:
        if (other := owners.get(name.lower())) is not None:
            raise ConfigError(f"{file}: the model name {name!r} is taken by {other}")


def _tomls(folder: Path) -> list[Path]:
    return sorted(file for file in folder.glob("*.toml") if not file.name.startswith("."))


def _read(file: Path, kind: type[_M], families: Collection[str]) -> _M:
    model = read_model(file, kind)
    known = {*families, *FAMILY_MARKS}
    if model.family not in known:
        raise ConfigError(f"{file}: unknown family {model.family!r}{nearest(model.family, known)}")
    return model


def _locate(model: ModelFile, models: Mapping[str, tuple[Path, ModelFile]], places: Places) -> _Located:
    """Where the weights should be: the base's, if there is one, with this model's components in place."""
    origin = model if model.weights.base is None else models[model.weights.base][1]
    weights = origin.weights
    folder = places.models / (weights.folder or origin.id)
    if weights.file is not None and weights.folder is None:
        folder = places.skeleton(model.family)
    return _Located(
        folder=folder,
        file=None if weights.file is None else places.models / weights.file,
        components={
            name: places.models / file for name, file in {**weights.components, **model.weights.components}.items()
        },
        loras=tuple(places.models / file for file in dict.fromkeys([*weights.loras, *model.weights.loras])),
        mark=folder / FAMILY_MARKS.get(model.family, "model_index.json") if weights.file is None else None,
    )


def _stand_ins(
    demos: Iterable[tuple[Path, DemoFile]],
    models: Mapping[str, tuple[Path, ModelFile]],
    families: Collection[str],
    places: Places,
    *,
    real: Collection[str],
) -> list[ModelSpec]:
    """Demo models for what has no weights here, under the real model's names."""
    owners = {name.lower(): file for file, model in models.values() for name in model.names}
    result = []
    for file, demo in demos:
        if demo.id in models:
            names = dict.fromkeys([*models[demo.id][1].aliases, *demo.aliases])
            _refuse_taken({name: owner for name, owner in owners.items() if owner != models[demo.id][0]}, file, names)
        else:
            names = dict.fromkeys(demo.aliases)
            _refuse_taken(owners, file, demo.names)
        owners |= {name.lower(): file for name in (demo.id, *names)}
        if demo.family in families and demo.id not in real:
            folder = places.data / "demo" / demo.demo
            loras = tuple(folder / file for file in demo.weights.loras)
            located = _Located(folder=folder, components={}, loras=loras, mark=None)
            result.append(_spec(demo, located, demo=demo.demo, aliases=tuple(names)))
    return result


def _spec(
    model: ModelFile, located: _Located, *, demo: str | None = None, aliases: tuple[str, ...] | None = None
) -> ModelSpec:
    return ModelSpec(
        id=model.id,
        family=model.family,
        aliases=tuple(model.aliases) if aliases is None else aliases,
        folder=located.folder,
        file=located.file,
        components=located.components,
        loras=located.loras,
        scheduler_options=model.scheduler,
        demo=demo,
        note=model.note,
        limits=Limits(**model.limits.model_dump()),
        dtype=model.dtype,
        tasks=frozenset() if model.family in LOOKING else frozenset(map(Task, model.tasks)),
        text_length=model.text_length,
        **model.defaults.model_dump(),
    )


def _watched(
    places: Places, demos: Iterable[Path], models: Iterable[tuple[Path, ModelFile]], located: Iterable[_Located]
) -> Iterator[Path]:
    yield from (places.configs / "models", places.configs / "demo", places.models)
    yield from demos
    yield from (file for file, _ in models)
    for one in located:
        # A file that is being copied into the folder changes no folder's date: the file itself is looked at.
        yield from (*(() if one.mark is None else (one.mark,)), *one.safetensors)
