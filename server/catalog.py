"""The models this server offers, found by id or alias."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipelines.errors import InvalidRequest, UnknownModel
from pipelines.model import Limits, ModelSpec
from server.config import ConfigError, describe, nearest, read_toml, refuse_unknown_keys

#: What a model may be called. Names from requests are only looked up; folders are built from configured ids.
_NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,95}(/[A-Za-z0-9][A-Za-z0-9_.-]{0,95})?$"

_Name = Annotated[str, Field(pattern=_NAME)]
_Positive = Annotated[int, Field(ge=1)]


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where ``./latentd pull`` finds a model's weights."""

    #: Hub id, ``owner/name``.
    hub: str
    #: Branch, tag or commit; None = the main branch.
    revision: str | None = None
    #: Of the files that come in several precisions, the one to take: "fp16".
    variant: str | None = None


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class _Source(_File):
    hub: _Name
    revision: str | None = None
    variant: str | None = None


class _Defaults(_File):
    width: _Positive | None = None
    height: _Positive | None = None
    steps: _Positive | None = None
    guidance: Annotated[float, Field(ge=0)] | None = None
    scheduler: str | None = None


class _Limits(_File):
    min_side: _Positive = Limits.min_side
    max_side: _Positive = Limits.max_side
    max_pixels: _Positive = Limits.max_pixels
    multiple: _Positive = Limits.multiple
    max_steps: Annotated[int, Field(ge=1, le=150)] = Limits.max_steps
    max_samples: _Positive = Limits.max_samples


class _Model(_File):
    id: _Name
    family: str
    aliases: list[_Name] = []
    dtype: str = ModelSpec.dtype
    note: str | None = None
    source: _Source | None = None
    defaults: _Defaults = _Defaults()
    limits: _Limits = _Limits()


class _Demo(_Model):
    #: Key of ``pipelines.demo.BUILDERS``.
    demo: _Name


class Catalog:
    """Looks models up; case does not matter."""

    def __init__(
        self, models: Iterable[ModelSpec], *, default: str | None = None, sources: Mapping[str, Source] | None = None
    ) -> None:
        self._models = tuple(models)
        self._default = default
        self._by_name = {name.lower(): model for model in self._models for name in (model.id, *model.aliases)}
        #: Where weights can be had, by model id; holds models that are not offered for want of weights, too.
        self.sources: Mapping[str, Source] = dict(sources or {})

    @classmethod
    def load(cls, *, configs: Path, data: Path, families: Collection[str], default_model: str | None = None) -> Self:
        """Reads ``configs/models``, ``data/models`` and ``configs/demo``; a stand-in is offered where weights lack.

        Raises ``ConfigError``: unreadable file, unknown key, family or default, a name that two models claim.
        """
        found = [
            (file, _read(file, _Model, families))
            for folder in (configs / "models", data / "models")
            for file in sorted(folder.glob("*.toml"))
        ]
        demos = [(file, _read(file, _Demo, families)) for file in sorted((configs / "demo").glob("*.toml"))]
        # A stand-in shares its model's names, so each set is checked by itself first and what is offered afterwards.
        _refuse_duplicates([(file, (model.id,)) for file, model in found])
        _refuse_duplicates([(file, (demo.id,)) for file, demo in demos])
        offered = _offered({model.id: (file, model) for file, model in found}, demos, data)
        _refuse_duplicates([(file, (spec.id, *spec.aliases)) for file, spec in offered])
        sources = {model.id: Source(**model.source.model_dump()) for _, model in found if model.source is not None}
        catalog = cls((spec for _, spec in offered), default=default_model, sources=sources)
        catalog._refuse_unknown_default()
        return catalog

    def get(self, name: str) -> ModelSpec:
        """The model of this id or alias. Raises ``UnknownModel``."""
        model = self._by_name.get(name.strip().lower())
        if model is None:
            raise UnknownModel(name)
        return model

    def models(self) -> tuple[ModelSpec, ...]:
        """All that are offered, by id."""
        return self._models

    def default(self) -> ModelSpec:
        """The configured default, else the only model. Raises ``InvalidRequest`` when a name is needed."""
        if self._default is not None:
            return self.get(self._default)
        if len(self._models) == 1:
            return self._models[0]
        ids = ", ".join(model.id for model in self._models) or "none"
        raise InvalidRequest(f"A model is needed; there are: {ids}", field="model")

    def _refuse_unknown_default(self) -> None:
        if self._default is not None and self._default.lower() not in self._by_name:
            raise ConfigError(f"default_model = {self._default!r} is no model{nearest(self._default, self._by_name)}")


_M = TypeVar("_M", bound=_Model)


def _read(file: Path, kind: type[_M], families: Collection[str]) -> _M:
    values = read_toml(file)
    refuse_unknown_keys(values, kind, where=str(file))
    # ``Source | None`` hides the section from the check above.
    if isinstance(values.get("source"), dict):
        refuse_unknown_keys(values["source"], _Source, where=str(file), prefix="source.")
    try:
        model = kind.model_validate(values)
    except ValidationError as error:
        raise ConfigError(describe(error, where=str(file))) from None
    if model.family not in families:
        raise ConfigError(f"{file}: unknown family {model.family!r}{nearest(model.family, families)}")
    _refuse_defaults_outside_limits(file, model)
    return model


def _refuse_defaults_outside_limits(file: Path, model: _Model) -> None:
    defaults, limits = model.defaults, model.limits
    for key, side in (("width", defaults.width), ("height", defaults.height)):
        if side is not None and (not limits.min_side <= side <= limits.max_side or side % limits.multiple):
            raise ConfigError(
                f"{file}: defaults.{key} = {side} is not a multiple of {limits.multiple} "
                f"from {limits.min_side} to {limits.max_side}"
            )
    if (defaults.width or 0) * (defaults.height or 0) > limits.max_pixels:
        raise ConfigError(f"{file}: defaults.width x defaults.height is more than max_pixels = {limits.max_pixels}")
    if (defaults.steps or 0) > limits.max_steps:
        raise ConfigError(f"{file}: defaults.steps = {defaults.steps} is more than max_steps = {limits.max_steps}")


def _offered(
    models: Mapping[str, tuple[Path, _Model]], demos: Iterable[tuple[Path, _Demo]], data: Path
) -> list[tuple[Path, ModelSpec]]:
    """Real models, then stand-ins for those whose weights are not there; by id."""
    offered = {
        id_: (file, _spec(model, folder=data / "models" / id_))
        for id_, (file, model) in models.items()
        if (data / "models" / id_ / "model_index.json").is_file()
    }
    for file, demo in demos:
        if demo.id not in offered:
            real = models.get(demo.id)
            aliases = dict.fromkeys([*demo.aliases, *(real[1].aliases if real else ())])
            spec = _spec(demo, folder=data / "demo" / demo.demo, demo=demo.demo, aliases=tuple(aliases))
            offered[demo.id] = (file, spec)
    return [offered[id_] for id_ in sorted(offered)]


def _spec(model: _Model, *, folder: Path, demo: str | None = None, aliases: tuple[str, ...] | None = None) -> ModelSpec:
    limits = Limits(**model.limits.model_dump())
    return ModelSpec(
        id=model.id,
        family=model.family,
        aliases=tuple(model.aliases) if aliases is None else aliases,
        folder=folder,
        demo=demo,
        note=model.note,
        limits=limits,
        dtype=model.dtype,
        **model.defaults.model_dump(),
    )


def _refuse_duplicates(names: Iterable[tuple[Path, tuple[str, ...]]]) -> None:
    owners: dict[str, Path] = {}
    for file, claimed in names:
        for name in claimed:
            if (other := owners.get(name.lower())) is not None:
                raise ConfigError(f"{file}: the model name {name!r} is taken by {other}")
            owners[name.lower()] = file
