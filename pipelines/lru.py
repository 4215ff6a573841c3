"""A cache that forgets what was unused for longest."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

T = TypeVar("T")


class BytesLru(Generic[T]):
    """Values by key, up to a number of bytes; one value larger than that is kept alone."""

    def __init__(self, max_bytes: int, size: Callable[[T], int]) -> None:
        self._max_bytes = max_bytes
        self._size = size
        self._bytes = 0
        self._kept: OrderedDict[Hashable, T] = OrderedDict()
        self.hits = 0
        self.misses = 0

    def get(self, key: Hashable) -> T | None:
        """The value, or None."""
        found = self._kept.get(key)
        if found is None:
            self.misses += 1
            return None
        self.hits += 1
        self._kept.move_to_end(key)
        return found

    def put(self, key: Hashable, value: T) -> None:
        """Keeps a value; those unused for longest make room."""
        before = self._kept.pop(key, None)
        if before is not None:
            self._bytes -= self._size(before)
        self._kept[key] = value
        self._bytes += self._size(value)
        while self._bytes > self._max_bytes and len(self._kept) > 1:
            _, oldest = self._kept.popitem(last=False)
            self._bytes -= self._size(oldest)

    def values(self) -> list[T]:
        """All that is kept, what was unused for longest first."""
        return list(self._kept.values())

    def clear(self) -> None:
        """Forgets all."""
        self._kept.clear()
        self._bytes = 0
