"""Which slot of a bank holds what, and who uses it."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable


class KeyedSlots:
    """Contents by key, one slot each; slot 0 is nobody's. What nobody uses stays until its place is needed."""

    def __init__(self, *, growth: int, max_idle: int) -> None:
        """``growth``: slots that are added at a time; ``max_idle``: contents that are kept although unused."""
        self._growth = growth
        self._max_idle = max_idle
        #: Key -> slot, those unused for longest first.
        self._slots: OrderedDict[Hashable, int] = OrderedDict()
        self._users: Counter[int] = Counter()
        self._free: list[int] = []
        #: Slots there must be room for, slot 0 among them.
        self.capacity = 1

    @property
    def users(self) -> int:
        """How often slots have been taken and not given back."""
        return self._users.total()

    def __len__(self) -> int:
        """Contents that are held."""
        return len(self._slots)

    def take(self, key: Hashable, write: Callable[[int], None], *, may_grow: Callable[[], bool] = lambda: True) -> int:
        """The key's slot, filled by ``write`` unless it is there; it stays until given back as often as taken.

        ``may_grow`` says whether there is memory for more slots; they are added all the same where all are in use.
        """
        slot = self._slots.get(key)
        if slot is None:
            slot = self._place(may_grow)
            try:
                write(slot)
            except BaseException:
                self._free.append(slot)
                raise
            self._slots[key] = slot
        self._slots.move_to_end(key)
        self._users[slot] += 1
        return slot

    def give(self, slot: int) -> None:
        """The counterpart of ``take``; 0 is nobody's."""
        if not slot:
            return
        self._users[slot] -= 1
        if not self._users[slot]:
            del self._users[slot]

    def clear(self) -> None:
        """Forgets everything; nobody may be using any of it."""
        self._slots.clear()
        self._free.clear()
        self.capacity = 1

    def _place(self, may_grow: Callable[[], bool]) -> int:
        """A slot to write to: a free one, that of the content unused for longest, or one more."""
        if self._free:
            return self._free.pop()
        idle = [key for key, slot in self._slots.items() if slot not in self._users]
        if idle and (len(idle) >= self._max_idle or not may_grow()):
            return self._slots.pop(idle[0])
        self._free = list(range(self.capacity + self._growth - 1, self.capacity - 1, -1))
        self.capacity += self._growth
        return self._free.pop()
