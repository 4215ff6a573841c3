"""Upscalers are models, too: a file each among the operator's weights, found by name when it is asked for."""

from __future__ import annotations

import re
from pathlib import Path

from pipelines.auxiliary import AuxiliaryKind, FindAuxiliary, find_nothing
from pipelines.errors import UnknownModel
from pipelines.model import ModelSpec
from pipelines.request import Task
from pipelines.upscalers import ALIASES, FAMILY, KNOWN, MAX_FACTOR, PREFIX, candidates

#: See ``default_upscaler``.
_DEFAULT = re.compile(rf"([1-{MAX_FACTOR}])x")


class Upscalers:
    """Any thread may ask."""

    def __init__(self, find: FindAuxiliary = find_nothing) -> None:
        self._find = find

    def get(self, name: str) -> ModelSpec:
        """By the engine's name, see ``pipelines.upscalers``. Without its weights a published one has no file.

        Raises ``UnknownModel``.
        """
        bare = name.removeprefix(PREFIX)
        default = _DEFAULT.fullmatch(bare)
        if default is None:
            known = _published(bare) or bare
            file = self._file(known)
            if file is None and known not in KNOWN:
                raise UnknownModel(bare)
            return _spec(known, file)
        best = candidates(int(default[1]))
        found = next((one for one in best if self._file(one) is not None), best[0])
        return _spec(found, self._file(found))

    def _file(self, name: str) -> Path | None:
        return self._find(AuxiliaryKind.UPSCALER, name)


def _published(name: str) -> str | None:
    """The name as it is written, of one in any case."""
    lower = name.strip().lower()
    return ALIASES.get(lower) or next((one for one in KNOWN if one.lower() == lower), None)


def _spec(name: str, file: Path | None) -> ModelSpec:
    return ModelSpec(
        id=f"{PREFIX}{name}",
        family=FAMILY,
        folder=Path() if file is None else file.parent,
        file=file,
        tasks=frozenset({Task.IMG2IMG}),
    )
