"""What was pulled, kept beside the files: latentd.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from server.pull.hub import RemoteFile

NAME = "latentd.json"


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What the model's file asks for."""

    hub: str
    revision: str
    variant: str
    #: Patterns of the files; ``needs_all``: each must match.
    patterns: tuple[str, ...]
    needs_all: bool


@dataclass(frozen=True, kw_only=True)
class Record:
    """A wish and what it came to."""

    wish: Wish
    #: What ``revision`` was when it was first pulled; later pulls keep to it.
    commit: str
    files: Mapping[str, RemoteFile]

    def write(self, folder: Path) -> None:
        """Replaces the folder's record."""
        content = {
            **asdict(self.wish),
            "commit": self.commit,
            "files": {file.name: {"size": file.size, "digest": file.digest} for file in self.files.values()},
        }
        new = folder / f".{NAME}"
        new.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        new.replace(folder / NAME)

    def is_complete(self, folder: Path) -> bool:
        """All files lie in the folder with their sizes; hashes were compared when they came."""
        return all(holds(folder, file) for file in self.files.values())


def holds(folder: Path, file: RemoteFile) -> bool:
    """The file is there with its size."""
    try:
        return (folder / file.name).stat().st_size == file.size
    except OSError:
        return False


def read_record(folder: Path) -> Record | None:
    """The folder's record; None where there is none that can be read."""
    try:
        content = json.loads((folder / NAME).read_text(encoding="utf-8"))
        wish = Wish(
            hub=content["hub"],
            revision=content["revision"],
            variant=content["variant"],
            patterns=tuple(content["patterns"]),
            needs_all=content["needs_all"],
        )
        files = {
            name: RemoteFile(name=name, size=int(entry["size"]), digest=str(entry["digest"]))
            for name, entry in content["files"].items()
        }
        return Record(wish=wish, commit=str(content["commit"]), files=files)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
