"""One model's TOML file: its keys, and what is wrong with it in one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from pipelines.model import Limits, ModelSpec
from schedulers.registry import SCHEDULERS
from server.catalog.weights import PICKLES, SUFFIX
from server.config import ConfigError, describe, nearest, read_toml, refuse_unknown_keys

#: What a model may be called. Names from requests are only looked up; folders are built from configured ids.
NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,95}(/[A-Za-z0-9][A-Za-z0-9_.-]{0,95})?$"

#: The parts of a diffusers folder that draw. Left alone: whole checkpoints at the top, other formats, safety checkers.
DIFFUSERS_FILES = (
    "model_index.json",
    "scheduler/*",
    "text_encoder/*",
    "text_encoder_2/*",
    "tokenizer/*",
    "tokenizer_2/*",
    "transformer/*",
    "unet/*",
    "vae/*",
)

_Name = Annotated[str, Field(pattern=NAME)]
_Positive = Annotated[int, Field(ge=1)]


class StrictTable(BaseModel):
    """A table of a TOML file: no unknown keys, no values of another kind."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Source(StrictTable):
    """Where ``./latentd pull`` finds the weights."""

    #: Hub id, ``owner/name``.
    hub: _Name
    #: Branch, tag or commit. What it resolved to is kept beside the pulled files.
    revision: str = "main"
    #: Of weights that come in several precisions the one to take; None = "fp16" unless ``dtype`` is float32. Where the
    #: repository has no such file, the one without a variant is taken.
    variant: str | None = None
    #: Patterns of the files needed, each of which must match; None = those of ``DIFFUSERS_FILES`` that are there. Of
    #: what matches, configurations, tokenizers and safetensors are taken.
    files: list[str] | None = None
    licence: str | None = None
    #: The hub asks for an account that has accepted the licence.
    gated: bool = False
    #: What a pull takes on disk, in 10^9 bytes; left out where nobody has looked.
    size_gb: Annotated[float, Field(gt=0)] | None = None


class Weights(StrictTable):
    """Where the weights lie; paths are relative to ``DATA/models``."""

    #: A diffusers folder; None = the model's id.
    folder: str | None = None
    #: A whole checkpoint in one file. ``folder`` then holds configurations and tokenizers; None = those of the family.
    file: str | None = None
    #: Id of a model whose weights are used, except for ``components``.
    base: _Name | None = None
    #: Files that replace components: unet = "sdxl-lightning/….safetensors".
    components: dict[str, str] = {}
    #: LoRAs that belong to the model: files laid over all that it draws.
    loras: list[str] = []

    @field_validator("file")
    @classmethod
    def _is_safetensors(cls, value: str | None) -> str | None:
        return None if value is None else _refuse_pickles(value)

    @field_validator("loras")
    @classmethod
    def _are_all_safetensors(cls, value: list[str]) -> list[str]:
        return [_refuse_pickles(file) for file in value]

    @field_validator("components")
    @classmethod
    def _are_safetensors(cls, value: dict[str, str]) -> dict[str, str]:
        return {name: _refuse_pickles(file) for name, file in value.items()}

    @model_validator(mode="after")
    def _one_origin(self) -> Weights:
        if self.base is not None and (self.folder is not None or self.file is not None):
            raise ValueError("base stands alone: folder and file are those of the base")
        return self


def _refuse_pickles(value: str) -> str:
    if Path(value).suffix in PICKLES:
        raise ValueError(f"{Path(value).suffix} files can run code when they are opened; convert it to {SUFFIX}")
    if Path(value).suffix != SUFFIX:
        raise ValueError(f"must be a {SUFFIX} file")
    return value


class Defaults(StrictTable):
    """What is drawn when a request leaves something out."""

    width: _Positive | None = None
    height: _Positive | None = None
    steps: _Positive | None = None
    guidance: Annotated[float, Field(ge=0)] | None = None
    clip_skip: Annotated[int, Field(ge=1, le=8)] | None = None
    scheduler: str | None = None

    @field_validator("scheduler")
    @classmethod
    def _is_known(cls, value: str | None) -> str | None:
        if value is not None and value not in SCHEDULERS:
            raise ValueError(f"no such scheduler{nearest(value, SCHEDULERS)}")
        return value


class LimitsTable(StrictTable):
    """What may be asked for."""

    min_side: _Positive = Limits.min_side
    max_side: _Positive = Limits.max_side
    max_pixels: _Positive = Limits.max_pixels
    multiple: _Positive = Limits.multiple
    max_steps: Annotated[int, Field(ge=1, le=150)] = Limits.max_steps
    max_samples: _Positive = Limits.max_samples


class ModelFile(StrictTable):
    """One model. Needed are ``id`` and ``family``; the weights are then looked for in ``DATA/models/<id>``."""

    id: _Name
    family: str
    aliases: list[_Name] = []
    dtype: str = ModelSpec.dtype
    #: What it can be asked for: an inpaint checkpoint does nothing else.
    tasks: list[Literal["text2img", "img2img", "inpaint"]] = ["text2img", "img2img", "inpaint"]
    #: Tokens that Flux' second text encoder reads.
    text_length: Annotated[int, Field(ge=1, le=512)] | None = ModelSpec.text_length
    note: str | None = None
    #: Id of the model that draws, with a warning, as long as only that one's weights are there.
    fallback: _Name | None = None
    source: Source | None = None
    weights: Weights = Weights()
    #: Options forced on the checkpoint's scheduler configuration.
    scheduler: dict[str, str | bool | int | float] = {}
    defaults: Defaults = Defaults()
    limits: LimitsTable = LimitsTable()

    @property
    def names(self) -> tuple[str, ...]:
        """The id and the aliases."""
        return (self.id, *self.aliases)


class DemoFile(ModelFile):
    """What stands in for the model of the same id while its weights are not there."""

    #: Key of ``pipelines.demo.BUILDERS``.
    demo: _Name


_M = TypeVar("_M", bound=ModelFile)
_T = TypeVar("_T", bound=StrictTable)


def read_model(file: Path, kind: type[_M]) -> _M:
    """As ``read_file``; raises ``ConfigError`` for a default outside the limits, too."""
    model = read_file(file, kind)
    _refuse_defaults_outside_limits(file, model)
    return model


def read_file(file: Path, kind: type[_T]) -> _T:
    """Raises ``ConfigError``: unreadable file, unknown key, value of the wrong kind."""
    values = read_toml(file)
    refuse_unknown_keys(values, kind, where=str(file))
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise ConfigError(describe(error, where=str(file))) from None


def _refuse_defaults_outside_limits(file: Path, model: ModelFile) -> None:
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
