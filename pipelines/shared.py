"""Modules that several models use, held once: an SDXL-Lightning UNet over SDXL brings no second pair of encoders."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Hashable, Iterable
from pathlib import Path
from typing import Any


class SharedComponents:
    """Loaded modules by what they were loaded from, for as long as some model holds them."""

    def __init__(self) -> None:
        self._kept: weakref.WeakValueDictionary[Hashable, Any] = weakref.WeakValueDictionary()
        # Models may be loaded on several device threads; two of them must not load the same file twice.
        self._lock = threading.RLock()

    def get(self, key: Hashable, load: Callable[[], Any]) -> Any:
        """The module of this key, loaded first when nobody holds it."""
        with self._lock:
            found = self._kept.get(key)
            if found is None:
                found = load()
                self._kept[key] = found
            return found

    def __contains__(self, key: Hashable) -> bool:
        return key in self._kept

    def __len__(self) -> int:
        return len(self._kept)


def identity(files: Iterable[Path]) -> tuple[tuple[str, int, int], ...]:
    """What tells the present contents of files from all others: real path, time of change, size."""
    result = []
    for file in files:
        real = file.resolve()
        stat = real.stat()
        result.append((str(real), stat.st_mtime_ns, stat.st_size))
    return tuple(result)
