"""A pull that shows nobody how far it is."""

from __future__ import annotations


class Silence:
    """See ``stage.Progress``."""

    def begin(self, model: str, commit: str, total: int, done: int) -> None:
        """Nothing is shown."""

    def file(self, name: str, size: int, done: int) -> None:
        """Nothing is shown."""

    def advance(self, count: int) -> None:
        """Nothing is shown."""
