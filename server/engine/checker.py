"""The safety checker on the device: loaded when first asked for, gone when a model needs its room."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from pipelines.base import Pixels
from pipelines.errors import Error
from pipelines.safety import Checked, CheckerFiles, SafetyChecker, refuse_unchecked

logger = logging.getLogger(__name__)


class ResidentChecker:
    """What looks at finished pictures; counted in the budget as ``models.Beside``."""

    def __init__(self, files: Callable[[], CheckerFiles | None], device: str) -> None:
        #: Where a checker lies at the moment; None: nowhere.
        self.files = files
        self._device = device
        self._loaded: SafetyChecker | None = None

    def check(self, pictures: Sequence[Pixels], replacements: Sequence[str]) -> list[Checked | Error]:
        """See ``pipelines.safety.Check``; loads the checker, anew when others are found."""
        files = self.files()
        if files is None:
            return refuse_unchecked(pictures, replacements)
        if self._loaded is None or self._loaded.files != files:
            self._load(files)
        assert self._loaded is not None
        return self._loaded.check(pictures, replacements)

    def bytes(self) -> int:
        """See ``Beside.bytes``."""
        return 0 if self._loaded is None else self._loaded.bytes

    def release(self) -> None:
        """See ``Beside.release``: the next check loads it again."""
        if self._loaded is not None:
            logger.info("safety checker unloaded to make room")
        self._loaded = None

    def _load(self, files: CheckerFiles) -> None:
        from pipelines import demo
        from pipelines.device import pick_device

        if files.demo is not None:
            demo.ensure(files.demo, files.folder.parent)
        # The old one's memory is needed for the new one.
        self._loaded = None
        self._loaded = SafetyChecker.load(files, pick_device(self._device))
        logger.info("safety checker of %s loaded, %.2f GB", files.folder.name, self._loaded.bytes / 1e9)
