"""What was pulled, kept in the files' folder as latentd.json, or beside a file among others as NAME.latentd.json."""

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
    #: By where they lie, relative to the folder; the repository may call them otherwise.
    files: Mapping[str, RemoteFile]

    def write(self, path: Path) -> None:
        """Replaces the record."""
        content = {
            **asdict(self.wish),
            "commit": self.commit,
            "files": {place: _entry(place, file) for place, file in self.files.items()},
        }
        new = path.with_name(f".{path.name}")
        new.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        new.replace(path)

    def is_complete(self, folder: Path) -> bool:
        """All files lie in the folder with their sizes; hashes were compared when they came."""
        return all(holds(folder / place, file) for place, file in self.files.items())


def holds(path: Path, file: RemoteFile) -> bool:
    """The file is there with its size."""
    try:
        return path.stat().st_size == file.size
    except OSError:
        return False


def read_record(path: Path) -> Record | None:
    """The record; None where there is none that can be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        wish = Wish(
            hub=content["hub"],
            revision=content["revision"],
            variant=content["variant"],
            patterns=tuple(content["patterns"]),
            needs_all=content["needs_all"],
        )
        files = {
            place: RemoteFile(name=str(entry.get("name", place)), size=int(entry["size"]), digest=str(entry["digest"]))
            for place, entry in content["files"].items()
        }
        return Record(wish=wish, commit=str(content["commit"]), files=files)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _entry(place: str, file: RemoteFile) -> dict[str, object]:
    entry: dict[str, object] = {"size": file.size, "digest": file.digest}
    return entry if place == file.name else entry | {"name": file.name}
