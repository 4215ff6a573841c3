"""A pull on the terminal: a bar for the file and one for all; lines where there is no terminal."""

from __future__ import annotations

from typing import Self

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import TransferSpeedColumn as SpeedColumn


class Bars:
    """Shows from ``with`` on."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            SpeedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._all: TaskID | None = None
        self._file: TaskID | None = None

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def begin(self, model: str, commit: str, total: int, done: int) -> None:
        """A bar for all files of the model."""
        here = f", {_amount(done)} of them here" if done else ""
        self._console.print(f"{model}: {_amount(total)}{here}, commit {commit[:12]}", highlight=False)
        self._file = None
        self._all = self._progress.add_task(model, total=total, completed=done)

    def file(self, name: str, size: int, done: int) -> None:
        """A bar for the file, above the one for all."""
        if not self._console.is_terminal:
            self._console.print(f"  {name} ({_amount(size)})", highlight=False)
        self._file = self._progress.add_task(f"  {name}", total=size, completed=done)

    def advance(self, count: int) -> None:
        """Both bars."""
        for task in (self._file, self._all):
            if task is not None:
                self._progress.advance(task, count)


def _amount(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
