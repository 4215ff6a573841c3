"""The styles that prompts can be given: those of the checkout, with the operator's own over them, without a restart."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from pipelines.styles import PromptStyle, PromptStyles, spelled
from server.config import ConfigError, describe, read_toml, refuse_unknown_keys

logger = logging.getLogger(__name__)

_Words = Annotated[str, Field(max_length=2_000)]


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Words(_File):
    """One style."""

    prefix: _Words = ""
    suffix: _Words = ""
    negative: _Words = ""


class StyleFile(_File):
    """``styles.toml``."""

    #: What ``enhance_prompt`` adds; left out: what the file below says.
    enhance: Words | None = None
    styles: dict[str, Words] = {}

    @field_validator("styles")
    @classmethod
    def _have_names(cls, value: dict[str, Words]) -> dict[str, Words]:
        for name in value:
            if spelled(name) != name:
                raise ValueError(f"{name!r} must be in lower case with hyphens: {spelled(name)!r}")
        return value


class StyleFiles:
    """The checkout's file, and the operator's, whose styles are added or take the place of those of their name."""

    def __init__(self, own: StyleFile, file: Path) -> None:
        self._own = own
        self._file = file
        self._seen: tuple[int, int] | None = None
        self._styles = _merged(own, StyleFile())

    @classmethod
    def load(cls, own: Path, file: Path) -> Self:
        """Raises ``ConfigError`` for the checkout's file; what is wrong with the operator's is logged."""
        return cls(_read(own), file)

    def current(self) -> PromptStyles:
        """As the files are now; while the operator's cannot be used, as they were before."""
        seen = self._fingerprint()
        if seen != self._seen:
            self._seen = seen
            try:
                self._styles = _merged(self._own, StyleFile() if seen is None else _read(self._file))
            except ConfigError as error:
                logger.warning("styles not read again: %s", error)
        return self._styles

    def _fingerprint(self) -> tuple[int, int] | None:
        try:
            status = self._file.stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size


def _read(file: Path) -> StyleFile:
    values = read_toml(file)
    refuse_unknown_keys(values, StyleFile, where=str(file))
    try:
        return StyleFile.model_validate(values)
    except ValidationError as error:
        raise ConfigError(describe(error, where=str(file))) from None


def _merged(below: StyleFile, above: StyleFile) -> PromptStyles:
    named = {**below.styles, **above.styles}
    return PromptStyles(
        enhance=_style(above.enhance or below.enhance or Words()),
        named={name: _style(words) for name, words in named.items()},
    )


def _style(words: Words) -> PromptStyle:
    return PromptStyle(**words.model_dump())
