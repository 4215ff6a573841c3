"""How much LoRAs may take on a device: all banks of an engine together."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Protocol

#: Bytes in all banks above which stacks that nobody uses make room, where nothing else is said.
MAX_BYTES = 2_000_000_000


class Bank(Protocol):
    """What is counted; see ``pipelines.lora_bank.LoraBank``."""

    @property
    def bytes(self) -> int:
        """What it takes now."""

    @property
    def users(self) -> int:
        """Rows and texts that need what it holds."""

    def clear(self) -> None:
        """Gives all of it back; only without users."""


class LoraMemory:
    """Counts the banks. Rows in flight get their slots in any case; what is kept for later stays below ``most``.

    The device thread alone changes banks.
    """

    def __init__(self, most: Callable[[], int] = lambda: MAX_BYTES) -> None:
        self._most = most
        self._banks: weakref.WeakSet[Bank] = weakref.WeakSet()

    def add(self, bank: Bank) -> None:
        """Counts it for as long as it lives."""
        self._banks.add(bank)

    @property
    def bytes(self) -> int:
        """Of all banks."""
        return sum(bank.bytes for bank in self._banks)

    def has_room(self, more: int, bank: Bank) -> bool:
        """A bank may grow by so many bytes; others that nobody uses are emptied for it."""
        most = self._most()
        for other in list(self._banks):
            if self.bytes + more <= most:
                break
            if other is not bank and not other.users:
                other.clear()
        return self.bytes + more <= most
