"""What weights lie beside the models, without loading any: LoRAs, textual inversions, VAEs, upscalers, adapters."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from pipelines.auxiliary import AuxiliaryKind, find_in, is_whole
from pipelines.errors import BrokenCheckpoint
from pipelines.weight_file import WeightFile
from server.catalog.weights import PICKLES, SUFFIX

logger = logging.getLogger(__name__)

#: What files say they were made for -> family: beginnings of ``modelspec.architecture`` (Stability's metadata
#: specification) and of ``ss_base_model_version`` (kohya-ss/sd-scripts).
_FAMILIES: Mapping[str, str] = MappingProxyType(
    {"stable-diffusion-v1": "sd15", "stable-diffusion-xl": "sdxl", "flux": "flux", "sd_v1": "sd15", "sdxl": "sdxl"}
)
#: Tags kept of those that a LoRA was trained with.
_MOST_TAGS = 5


@dataclass(frozen=True, kw_only=True)
class Auxiliary:
    """One that is here, whole, and can be asked for by its name."""

    kind: AuxiliaryKind
    #: As requests name it: the file's without .safetensors, or the folder's.
    name: str
    path: Path
    #: Bytes on the disk.
    size: int
    #: Seconds since 1970 of its last change.
    modified: float
    #: What it says it was made for: a family of ours, and the word that it uses itself.
    family: str | None = None
    base: str | None = None
    #: Words that call what a LoRA was taught: those that it names, else the tags seen most often in its training.
    triggers: tuple[str, ...] = ()


#: Paths with dates and sizes: what tells one state of a file or folder from all others.
_State = tuple[tuple[str, int, int], ...]


class Auxiliaries:
    """Looks into ``DATA/<kind>/`` whenever it is asked, and reads the header of a file once. Any thread may ask."""

    def __init__(self, data: Path) -> None:
        self._data = data
        self._lock = threading.Lock()
        #: By path: the state that was read, and what was found; None: not whole.
        self._known: dict[Path, tuple[_State, Auxiliary | None]] = {}
        #: Files that were looked up, in the state in which they were whole.
        self._whole: dict[Path, _State] = {}
        # Not the other lock, which is held while the headers of a whole folder are read: the device waits for look-ups.
        self._telling = threading.Lock()
        self._told: set[Path] = set()

    def of(self, kind: AuxiliaryKind) -> tuple[Auxiliary, ...]:
        """All that can be used, by name; what is still being copied is left out."""
        folder = self._data / kind.value
        entries = _entries(folder)
        self._tell_pickles(entries)
        with self._lock:
            for path in [path for path in self._known if path.parent == folder and path not in entries]:
                del self._known[path]
            found = [self._read(kind, path) for path in entries]
        return tuple(sorted((one for one in found if one is not None), key=lambda one: one.name))

    def find(self, kind: AuxiliaryKind, name: str) -> Path | None:
        """See ``pipelines.auxiliary.FindAuxiliary``; what is there and cannot be read is named in the log."""
        folder = self._data / kind.value
        path = find_in(folder, name, is_whole=self._is_whole)
        if path is None:
            self._tell_pickles(_entries(folder))
        return path

    def _is_whole(self, path: Path) -> bool:
        """As ``is_whole``; a header of a thousand tensors is not read at every request."""
        state = _state([path])
        if state is None:
            return False
        if self._whole.get(path) != state:
            if not is_whole(path):
                return False
            self._whole[path] = state
        return True

    def _read(self, kind: AuxiliaryKind, path: Path) -> Auxiliary | None:
        files = _files(path)
        state = _state(files)
        if not files or state is None:
            return None
        before = self._known.get(path)
        if before is None or before[0] != state:
            before = self._known[path] = (state, _open(kind, path, files, state))
        return before[1]

    def _tell_pickles(self, entries: list[Path]) -> None:
        """Once for each file."""
        with self._telling:
            new = [path for path in entries if path.suffix in PICKLES and path not in self._told]
            self._told.update(new)
        for path in new:
            told = "%s is not used: it can run code when it is opened; ./latentd convert makes a %s of it"
            logger.warning(told, path, SUFFIX)


def _entries(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            names = sorted(one.name for one in entries if not one.name.startswith("."))
    except OSError:
        return []
    return [folder / name for name in names]


def _files(path: Path) -> list[Path]:
    """The weights of an entry; none where it is something else."""
    if path.suffix == SUFFIX:
        return [path]
    return sorted(path.glob(f"*{SUFFIX}")) if (path / "config.json").is_file() else []


def _state(files: list[Path]) -> _State | None:
    """None when one goes away meanwhile."""
    try:
        status = [(str(file), file.stat()) for file in files]
    except OSError:
        return None
    return tuple((name, one.st_mtime_ns, one.st_size) for name, one in status)


def _open(kind: AuxiliaryKind, path: Path, files: list[Path], state: _State) -> Auxiliary | None:
    try:
        metadata, *_ = [WeightFile.open(file, file.stem).metadata for file in files]
    except BrokenCheckpoint:
        return None
    base = metadata.get("ss_base_model_version") or metadata.get("modelspec.architecture")
    return Auxiliary(
        kind=kind,
        name=path.stem if path.suffix == SUFFIX else path.name,
        path=path,
        size=sum(size for _, _, size in state),
        modified=max(date for _, date, _ in state) / 1e9,
        family=_family(metadata),
        base=base,
        triggers=tuple(_triggers(metadata)),
    )


def _family(metadata: Mapping[str, str]) -> str | None:
    told = (metadata.get(key, "").lower() for key in ("modelspec.architecture", "ss_base_model_version"))
    return next((family for one in told for begin, family in _FAMILIES.items() if one.startswith(begin)), None)


def _triggers(metadata: Mapping[str, str]) -> Iterator[str]:
    phrase = metadata.get("modelspec.trigger_phrase", "").strip()
    if phrase:
        yield from (word.strip() for word in phrase.split(",") if word.strip())
        return
    try:
        sets = json.loads(metadata.get("ss_tag_frequency", "{}"))
        counts = [(str(tag).strip(), int(count)) for tags in sets.values() for tag, count in tags.items()]
    except (ValueError, TypeError, AttributeError):
        return
    yield from dict.fromkeys(tag for tag, _ in sorted(counts, key=lambda one: -one[1])[:_MOST_TAGS])
