"""Every setting, written once: command line over environment over TOML file over the defaults here."""

from __future__ import annotations

import difflib
import ipaddress
import os
import re
import tomllib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeAlias, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from pipelines.model import Offload
from pipelines.safety import REPLACEMENTS

ROOT = Path(__file__).resolve().parent.parent
DEFAULT_FILE = ROOT / "configs" / "server.toml"

PREFIX = "LATENTD_"
#: Read by the launcher script before Python starts; no settings.
LAUNCHER_VARIABLES = frozenset({"LATENTD_USE_SYSTEM_TORCH", "LATENTD_TORCH_INDEX", "LATENTD_PYTHON"})

#: A host or IPv4 address, or an IPv6 address in brackets, with or without a port.
_ALLOWED_HOST = re.compile(r"([\w.-]+|\[[0-9a-fA-F:.]+\])(:\d{1,5})?")


class ConfigError(Exception):
    """A setting that cannot be used; ``str(error)`` is one line for the operator and never holds a secret."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


def _split(value: object) -> object:
    """An environment variable has no lists, so a comma separates."""
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value


_Strings: TypeAlias = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]
_Seconds: TypeAlias = Annotated[tuple[float, ...], NoDecode, BeforeValidator(_split)]


class ModelsLabSettings(BaseModel):
    """How the ModelsLab dialect answers where its documentation and its clients disagree."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    #: ``status`` of a job that failed: the documentation says "error", some SDKs look for "failed".
    failed_status: Literal["error", "failed"] = "error"
    #: Answer refusals with HTTP 200 and ``status: error``, as the hosted service does.
    legacy_http_200: bool = False
    #: More steps than this are clamped to it (the documented limit).
    max_steps: int = Field(default=50, ge=1, le=150)
    #: Refuse sizes that are no multiple of 8 instead of rounding them.
    strict_sizes: bool = False
    #: ``clip_skip`` of a request without one, where the model says nothing: 1 is stock, the documentation says 2.
    clip_skip_default: int = Field(default=1, ge=1, le=2)
    #: What ``output`` holds with ``base64``: URLs of text files, as the hosted service answers, or the text itself.
    base64_mode: Literal["url", "inline"] = "url"


class SafetySettings(BaseModel):
    """Who decides whether Stable Diffusion's safety checker looks at the pictures of every model."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    #: "yes" or "no" for requests that do not say.
    default: Literal["no", "yes"] = "no"
    #: Every picture is checked, in every API, and nothing is drawn while the checker's weights are not here.
    force: bool = False
    #: What replaces a flagged picture of a request that does not say: sensitive_content_text, blur, pixelate, black.
    type: str = "sensitive_content_text"

    @field_validator("type")
    @classmethod
    def _is_known(cls, value: str) -> str:
        if value not in REPLACEMENTS:
            raise ValueError(f"no such replacement{nearest(value, REPLACEMENTS)}")
        return value


class Settings(BaseSettings):
    """Plain values; ``Settings(...)`` takes arguments only, ``Settings.load`` reads file and environment as well."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        env_prefix=PREFIX,
        env_nested_delimiter="__",
        # Compose files pass unset variables on as empty ones.
        env_ignore_empty=True,
    )

    #: Address to listen on; 0.0.0.0 for all.
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    #: Database, images, weights and demo checkpoints.
    data: Path = Path("data")
    #: Bootstrap key, at least 16 characters, holds every scope; unset: one is made at first start.
    api_key: SecretStr | None = Field(default=None, min_length=16)
    #: Base of the URLs in answers, such as https://images.example.org; unset: as the caller addressed the server.
    public_url: str | None = None
    #: Seconds a submitting call waits for its pictures before it is answered "processing".
    sync_wait_s: float = Field(default=15.0, ge=0, le=3600)
    #: Hosts, addresses and networks that webhooks and input URLs may reach although they are not public.
    allow_private_hosts: _Strings = ()
    #: Drawn when a request names no model; unset: the only model with weights, before any are here the sd15 demo.
    default_model: str | None = None
    #: Drawn by the realtime endpoints; unset: the default model.
    realtime_model: str | None = None
    #: Repaints for the editing endpoints (inpaint, outpaint, object removal); unset: one made for nothing else.
    edit_model: str | None = None
    #: Describes pictures for ModelsLab's caption endpoint; unset: the first one that can.
    caption_model: str | None = None
    #: Jobs that may wait, in all and per API key; beyond, submits are refused with Retry-After.
    max_queued_jobs: int = Field(default=10_000, ge=1)
    max_queued_jobs_per_key: int = Field(default=1_000, ge=1)
    #: Seconds from submit until a job that has not finished fails.
    job_deadline_s: float = Field(default=3600.0, gt=0)
    #: Times a job is started before a crash of the server counts as the job's own fault.
    max_attempts: int = Field(default=3, ge=1)
    #: Every picture bit-equal whatever its neighbours: each row in forwards of its own, so slower.
    reproducible: bool = False
    #: Most rows in one forward; memory may set less.
    max_rows: int = Field(default=16, ge=1)
    #: Models kept on the device at a time; the least recently used one leaves.
    max_resident_models: int = Field(default=4, ge=1)
    #: Gigabytes of weights on the device at a time; unset: four fifths of a GPU's memory, any on the CPU.
    vram_budget_gb: float | None = Field(default=None, gt=0)
    #: What of a model rests in the computer's memory while it is not used: none, encoders, model, sequential.
    offload: Offload = Offload.NONE
    #: "auto" (the first GPU, else the CPU), "cpu", "cuda" or "cuda:<n>".
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d{1,2})?)$")
    #: Threads of one forward on the CPU; unset: torch decides.
    threads: int | None = Field(default=None, ge=1)
    #: Longest request body that is read, in bytes.
    max_body_bytes: int = Field(default=64 * 1024 * 1024, ge=1024)
    #: Serve /docs and /openapi.json without a key.
    public_docs: bool = False
    #: Serve /metrics without a key.
    public_metrics: bool = False
    #: Seconds for one try of a webhook, and the pauses before each further try.
    webhook_timeout_s: float = Field(default=15.0, gt=0)
    webhook_delays_s: _Seconds = (1.0, 5.0, 25.0)
    #: Quality of JPEG and WebP pictures.
    picture_quality: int = Field(default=92, ge=1, le=100)
    #: Pictures say inside what was asked for, prompt included: AUTOMATIC1111's text, and what ``replay`` reads.
    picture_parameters: bool = True
    #: Days until a finished job's pictures are deleted; 0: never. Temporary ones live a day whatever this says.
    retention_days: float = Field(default=0.0, ge=0)
    #: Gigabytes of pictures beyond which those of the oldest jobs are deleted; unset: no limit.
    max_storage_gb: float | None = Field(default=None, gt=0)
    #: Days that an input picture is kept after it was last sent, so that requests can be repeated; 0: for ever.
    input_retention_days: float = Field(default=1.0, ge=0)

    safety: SafetySettings = SafetySettings()
    modelslab: ModelsLabSettings = ModelsLabSettings()

    @field_validator("public_url")
    @classmethod
    def _no_trailing_slash(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"https?://[^\s/?#]+(/[^\s?#]*)?", value):
            raise ValueError("must be an http or https URL without query")
        return value.rstrip("/") if value else value

    @field_validator("allow_private_hosts")
    @classmethod
    def _hosts_or_networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for entry in value:
            if not _ALLOWED_HOST.fullmatch(entry):
                try:
                    ipaddress.ip_network(entry, strict=False)
                except ValueError:
                    raise ValueError(f"{entry!r} is no host, address or network") from None
        return value

    @field_validator("webhook_delays_s")
    @classmethod
    def _not_negative(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if any(delay < 0 for delay in value):
            raise ValueError("a pause cannot be negative")
        return value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        # The constructor stays pure: load() alone reads the surroundings, and so knows where each value came from.
        return (init_settings,)

    @classmethod
    def load(cls, file: Path | None = None, **arguments: object) -> Self:
        """Settings from arguments (``None`` = not given), ``LATENTD_…`` variables, the TOML file, defaults.

        ``file`` is ``configs/server.toml`` of this checkout, if it is there, unless one is given. Raises
        ``ConfigError``: unreadable file, unknown key or variable, value of the wrong kind.
        """
        if file is None and DEFAULT_FILE.exists():
            file = DEFAULT_FILE
        from_file = without_empty(read_toml(file)) if file else {}
        refuse_unknown_keys(from_file, cls, where=str(file))
        _refuse_unknown_variables(os.environ, _paths(cls))
        from_environment = EnvSettingsSource(cls)()
        given = {key: value for key, value in arguments.items() if value is not None}
        refuse_unknown_keys(given, cls, where="arguments")
        try:
            return cls(**_merged(given, from_environment, from_file))
        except ValidationError as error:
            raise ConfigError(_describe_setting(error, given, from_environment, str(file))) from None


def read_toml(file: Path) -> dict[str, Any]:
    """The file's tables. Raises ``ConfigError`` if it is missing, unreadable or not TOML."""
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: not valid TOML: {error}") from error


def without_empty(values: dict[str, Any]) -> dict[str, Any]:
    """TOML has no null: an empty text means "not set", as an empty variable does."""
    kept = {key: without_empty(value) if isinstance(value, dict) else value for key, value in values.items()}
    return {key: value for key, value in kept.items() if value != ""}


def refuse_unknown_keys(values: Mapping[str, Any], model: type[BaseModel], *, where: str, prefix: str = "") -> None:
    """Raises ``ConfigError`` with the nearest known key; looks into sections, and into those that a table names."""
    for key, value in values.items():
        if key not in model.model_fields:
            raise ConfigError(f"{where}: unknown key {prefix}{key}{nearest(key, model.model_fields)}")
        annotation = model.model_fields[key].annotation
        # Sections by names that the file chooses.
        tables = _tables(key, value) if get_origin(annotation) is dict else {key: value}
        for section in (annotation, *get_args(annotation)):
            if isinstance(section, type) and issubclass(section, BaseModel):
                for name, table in tables.items():
                    if isinstance(table, Mapping):
                        refuse_unknown_keys(table, section, where=where, prefix=f"{prefix}{name}.")


def _tables(key: str, value: object) -> dict[str, Any]:
    return {f"{key}.{name}": table for name, table in value.items()} if isinstance(value, Mapping) else {}


def nearest(name: str, known: Collection[str]) -> str:
    """The end of an error sentence: ``; did you mean port?``"""
    matches = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {matches[0]}?" if matches else f"; known are {', '.join(sorted(known))}"


def describe(error: ValidationError, *, where: str) -> str:
    """One sentence about the first wrong value of a file: where, key, value, reason."""
    first = error.errors(include_url=False, include_context=False)[0]
    key = ".".join(str(part) for part in first["loc"])
    reason = first["msg"].removeprefix("Value error, ")
    if first["type"] == "missing":
        return f"{where}: {key} is missing"
    if not key:
        # About the file as a whole.
        return f"{where}: {reason}"
    return f"{where}: {key} = {_shortened(first['input'])} is not usable: {reason}"


def _shortened(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"


def _describe_setting(
    error: ValidationError, given: Mapping[str, Any], environment: Mapping[str, Any], file: str
) -> str:
    first = error.errors(include_url=False, include_context=False)[0]
    path = [str(part) for part in first["loc"]]
    if _holds(given, path):
        where = "arguments"
    elif _holds(environment, path):
        # Only the parts that name fields: a list's index is no part of the variable.
        fields = [part for part in path if not part.isdigit()]
        where = f"environment variable {PREFIX}{'__'.join(fields).upper()}"
    else:
        where = file
    if path[0] == "api_key":
        return f"{where}: api_key is not usable: it needs at least 16 characters"
    return describe(error, where=where)


def _holds(values: Mapping[str, Any], path: list[str]) -> bool:
    inner = values.get(path[0])
    if isinstance(inner, Mapping) and len(path) > 1:
        return _holds(inner, path[1:])
    return path[0] in values


def _merged(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Earlier layers win, key by key, sections included."""
    result: dict[str, Any] = {}
    for layer in reversed(layers):
        for key, value in layer.items():
            below = result.get(key)
            if isinstance(value, Mapping) and isinstance(below, Mapping):
                result[key] = _merged(value, below)
            else:
                result[key] = value
    return result


def _paths(model: type[BaseModel], prefix: str = PREFIX) -> Iterator[str]:
    """The names of all environment variables."""
    for key, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _paths(field.annotation, f"{prefix}{key.upper()}__")
        else:
            yield f"{prefix}{key.upper()}"


def _refuse_unknown_variables(environment: Mapping[str, str], known: Iterator[str]) -> None:
    names = set(known)
    for name in environment:
        upper = name.upper()
        if upper.startswith(PREFIX) and upper not in names | LAUNCHER_VARIABLES:
            raise ConfigError(f"environment: unknown variable {name}{nearest(upper, names)}")
