"""Device state of a lane's rows, in slots of tensors that keep their addresses.

A forward gathers from slots by index, so that its inputs besides the pool are a few short arrays: rows join and
leave without anything being moved, and a CUDA graph can be replayed for any set of rows.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class SlotPool:
    """State of up to ``capacity`` rows; slot ``capacity`` is scratch, where padding points.

    latents       (slots, 4, *shape) float32: x and at most three hidden tensors of the sampler
    noise         (slots, *shape) float32: what the next step will draw
    finite        (slots,) bool: false from the first step that left something not finite
    conditioning  name -> (2 * slots, ...): entry 2s is slot s's positive side, 2s + 1 its negative side
    """

    def __init__(self, capacity: int, shape: tuple[int, ...], device: torch.device) -> None:
        self.capacity = capacity
        self.shape = shape
        self.device = device
        self.latents = torch.zeros(capacity + 1, 4, *shape, device=device)
        self.noise = torch.zeros(capacity + 1, *shape, device=device)
        self.finite = torch.ones(capacity + 1, dtype=torch.bool, device=device)
        self.conditioning: dict[str, Tensor] = {}
        self._free = list(range(capacity - 1, -1, -1))

    @property
    def scratch(self) -> int:
        """The slot that padding reads and writes."""
        return self.capacity

    @property
    def empty(self) -> bool:
        """No row holds a slot."""
        return len(self._free) == self.capacity

    def take(self, positive: Mapping[str, Tensor], negative: Mapping[str, Tensor] | None) -> int:
        """Reserves a slot and writes its conditioning (one entry each, without an entry axis); IndexError when full."""
        slot = self._free.pop()
        for name, value in positive.items():
            if name not in self.conditioning:
                self.conditioning[name] = value.new_zeros(2 * (self.capacity + 1), *value.shape, device=self.device)
            self.conditioning[name][2 * slot].copy_(value)
            if negative is not None:
                self.conditioning[name][2 * slot + 1].copy_(negative[name])
        self.latents[slot].zero_()
        self.noise[slot].zero_()
        self.finite[slot] = True
        return slot

    def give(self, slot: int) -> None:
        """Frees a slot."""
        self._free.append(slot)
