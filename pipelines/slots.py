"""Device state of a lane's rows, in slots of tensors that keep their addresses.

A forward gathers from slots by index, so that its inputs besides the pool are a few short arrays: rows join and
leave without anything being moved, and a CUDA graph can be replayed for any set of rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What inpaint rows put back into the kept area; every slot has one, those without a mask repaint everything."""

    #: (slots, *shape) float32.
    clean: Tensor
    noise: Tensor
    #: (slots, *mask shape) float32, 0 .. 1; broadcasts against ``clean``. 1 is repainted.
    mask: Tensor


class SlotPool:
    """State of up to ``capacity`` rows; slot ``capacity`` is scratch, where padding points.

    latents       (slots, 4, *shape) float32: x and at most three hidden tensors of the sampler
    noise         (slots, *shape) float32: what the next step will draw
    finite        (slots,) bool: false from the first step that left something not finite
    conditioning  name -> (2 * slots, ...): entry 2s is slot s's positive side, 2s + 1 its negative side
    extra         (slots, *extra shape) float32: more input channels, put behind x's along ``channel_axis``; or None
    reference     for inpainting by blending, from the first row that wants it; or None
    """

    def __init__(self, capacity: int, shape: tuple[int, ...], device: torch.device, *, channel_axis: int = 1) -> None:
        self.capacity = capacity
        self.shape = shape
        self.device = device
        #: Axis of a batch along which ``extra`` is appended.
        self.channel_axis = channel_axis
        self.latents = torch.zeros(capacity + 1, 4, *shape, device=device)
        self.noise = torch.zeros(capacity + 1, *shape, device=device)
        self.finite = torch.ones(capacity + 1, dtype=torch.bool, device=device)
        self.conditioning: dict[str, Tensor] = {}
        self.extra: Tensor | None = None
        self.reference: Reference | None = None
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
        """Reserves a clean slot and writes its conditioning (without an entry axis); IndexError when full."""
        for name, value in positive.items():
            if name not in self.conditioning:
                self.conditioning[name] = value.new_zeros(2 * (self.capacity + 1), *value.shape, device=self.device)
        # Only now: a pool without memory must not lose the slot as well.
        slot = self._free.pop()
        for name, value in positive.items():
            self.conditioning[name][2 * slot].copy_(value)
            if negative is not None:
                self.conditioning[name][2 * slot + 1].copy_(negative[name])
        self.latents[slot].zero_()
        self.noise[slot].zero_()
        self.finite[slot] = True
        if self.extra is not None:
            self.extra[slot].zero_()
        if self.reference is not None:
            self._repaint_all(self.reference, slot)
        return slot

    def set_extra(self, slot: int, extra: Tensor) -> None:
        """Writes a slot's extra channels, (*extra shape)."""
        if self.extra is None:
            self.extra = torch.zeros(self.capacity + 1, *extra.shape, device=self.device)
        self.extra[slot].copy_(extra)

    def set_reference(self, slot: int, *, clean: Tensor, noise: Tensor, mask: Tensor) -> None:
        """Writes what a slot's kept area is; shapes as in ``Reference``, without the slot axis."""
        if self.reference is None:
            slots = self.capacity + 1
            self.reference = Reference(
                clean=torch.zeros(slots, *self.shape, device=self.device),
                noise=torch.zeros(slots, *self.shape, device=self.device),
                mask=torch.ones(slots, *mask.shape, device=self.device),
            )
        self.reference.clean[slot].copy_(clean)
        self.reference.noise[slot].copy_(noise)
        self.reference.mask[slot].copy_(mask)

    @staticmethod
    def _repaint_all(reference: Reference, slot: int) -> None:
        # Zeros, not leftovers: a mask of one multiplies them by zero, and zero times NaN is NaN.
        reference.clean[slot].zero_()
        reference.noise[slot].zero_()
        reference.mask[slot].fill_(1.0)

    def give(self, slot: int) -> None:
        """Frees a slot."""
        self._free.append(slot)
