"""Where pulled files come to lie: a folder of their own, or one file among others."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

from server.pull.record import NAME


class Home(Protocol):
    """One pull's place. Places in its record are relative to ``folder``; the stage lies beside, on the same disk."""

    @property
    def folder(self) -> Path:
        """Holds the files."""

    @property
    def stage(self) -> Path:
        """Where they are gathered until all are there; the record is kept there, too, under its own name."""

    @property
    def record(self) -> Path:
        """The record's file."""

    @property
    def lock(self) -> Path:
        """Held while something is pulled here."""

    def place(self, name: str) -> str:
        """What a repository's file is called here."""

    def taken(self) -> Path | None:
        """What lies here, if anything does."""

    def move_in(self) -> None:
        """The stage's files take the place of those that are here; a server that runs keeps what it has open."""


@dataclass(frozen=True, kw_only=True)
class OwnFolder:
    """A folder that holds nothing else; see ``Home``."""

    folder: Path
    #: Files lose the folders that they have in the repository.
    flat: bool = False

    @property
    def stage(self) -> Path:
        return self.folder.with_name(f".{self.folder.name}.part")

    @property
    def record(self) -> Path:
        return self.folder / NAME

    @property
    def lock(self) -> Path:
        return self.folder.with_name(f".{self.folder.name}.lock")

    def place(self, name: str) -> str:
        return PurePosixPath(name).name if self.flat else name

    def taken(self) -> Path | None:
        return self.folder if self.folder.is_dir() and any(self.folder.iterdir()) else None

    def move_in(self) -> None:
        outgoing = self.folder.with_name(f".{self.folder.name}.old")
        shutil.rmtree(outgoing, ignore_errors=True)
        if self.folder.exists():
            self.folder.rename(outgoing)
        self.stage.rename(self.folder)
        shutil.rmtree(outgoing, ignore_errors=True)


@dataclass(frozen=True, kw_only=True)
class OneFile:
    """A file of its own name in a folder of many, its record beside it; see ``Home``."""

    file: Path

    @property
    def folder(self) -> Path:
        return self.file.parent

    @property
    def stage(self) -> Path:
        return self.folder / f".{self.file.stem}.part"

    @property
    def record(self) -> Path:
        return self.folder / f"{self.file.stem}.{NAME}"

    @property
    def lock(self) -> Path:
        return self.folder / f".{self.file.stem}.lock"

    def place(self, name: str) -> str:
        return self.file.name

    def taken(self) -> Path | None:
        return self.file if self.file.exists() else None

    def move_in(self) -> None:
        # The record last: one that says too little only makes the next pull look again.
        (self.stage / self.file.name).replace(self.file)
        (self.stage / NAME).replace(self.record)
        shutil.rmtree(self.stage, ignore_errors=True)
