"""The inputs of one step: short arrays that say which slots take part and how, sent to the device in one copy."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

#: Words per matrix: [x', h1', h2', h3'] from [x, h1, h2, h3, out, noise].
MATRIX = 4 * 6


class RowStep(NamedTuple):
    """One row's part in a step. A tuple, because one is made per row and step."""

    slot: int
    #: Guidance scale; None for a row with one entry.
    guidance: float | None
    timestep: float
    input_scale: float
    #: float32, (4, 6).
    matrix: NDArray[np.float32]
    #: The output and noise coefficients are scaled by the ratio of norms (ScoreSdeVe's corrector).
    norm_scaled: bool
    #: Shares of the clean picture and its noise in the kept area after the step; None for a row without a mask.
    blend: tuple[float, float] | None = None
    #: Slot of its LoRAs in the model's bank; 0 for a row without.
    lora: int = 0
    #: Slots of its picture in the model's bank, for its positive and its negative side, and how much it counts; 0 for a
    #: row without.
    adapter: tuple[int, int] = (0, 0)
    adapter_scale: float = 0.0


class StepBlock:
    """Host and device side of the arrays, for a fixed number of entries and rows.

    Everything lies in one int32 buffer (floats as their bits), so that a step costs one copy. With more places than
    rows, the rest is padding that reads and writes the pool's scratch slot with a zero matrix.
    """

    def __init__(self, *, entries: int, rows: int, device: torch.device) -> None:
        self.entries = entries
        self.rows = rows
        words = 7 * entries + (7 + MATRIX) * rows
        pinned = device.type == "cuda"
        self._host = torch.zeros(words, dtype=torch.int32, pin_memory=pinned)
        self._device = self._host if device.type == "cpu" else torch.zeros(words, dtype=torch.int32, device=device)
        self._ints = self._host.numpy()
        self._floats = self._host.view(torch.float32).numpy()
        self._at: dict[str, slice] = {}
        start = 0
        # Integers first, then floats: the host writes each kind in one go.
        for name, length in (
            ("entry_slot", entries),
            ("entry_conditioning", entries),
            ("entry_lora", entries),
            ("entry_adapter", entries),
            ("row_slot", rows),
            ("row_positive", rows),
            ("row_negative", rows),
            ("timestep", entries),
            ("input_scale", entries),
            ("entry_adapter_scale", entries),
            ("guidance", rows),
            ("norm_scaled", rows),
            ("blend", 2 * rows),
            ("matrices", MATRIX * rows),
        ):
            self._at[name] = slice(start, start + length)
            start += length
        #: Some row of the step scales by norms, blends, has LoRAs, or a picture as prompt; known on the host because it
        #: changes what is launched.
        self.any_norm_scaled = False
        self.any_blended = False
        self.any_lora = False
        self.any_adapter = False
        #: The slot of LoRAs that all rows of the step have; None: several.
        self.only_lora: int | None = None

    def fill(self, steps: Sequence[RowStep], *, scratch: int) -> None:
        """Writes the host side and sends it; ValueError when the rows do not fit."""
        entries, positive, negative = _entries(steps)
        if len(entries) > self.entries or len(steps) > self.rows:
            raise ValueError(f"{len(entries)} entries of {len(steps)} rows do not fit {self.entries} of {self.rows}")
        spare = self.entries - len(entries)
        free = self.rows - len(steps)
        self._ints[: self._at["timestep"].start] = [
            *[step.slot for step, _ in entries],
            *[scratch] * spare,
            *[2 * step.slot + side for step, side in entries],
            *[2 * scratch] * spare,
            *[step.lora for step, _ in entries],
            *[0] * spare,
            *[step.adapter[side] for step, side in entries],
            *[0] * spare,
            *[step.slot for step in steps],
            *[scratch] * free,
            *positive,
            *[0] * free,
            *negative,
            *[0] * free,
        ]
        self._floats[self._at["timestep"].start : self._at["matrices"].start] = [
            *[step.timestep for step, _ in entries],
            *[0.0] * spare,
            *[step.input_scale for step, _ in entries],
            *[0.0] * spare,
            *[step.adapter_scale for step, _ in entries],
            *[0.0] * spare,
            *[step.guidance or 0.0 for step in steps],
            *[0.0] * free,
            *[float(step.norm_scaled) for step in steps],
            *[0.0] * free,
            *[share for step in steps for share in step.blend or (1.0, 0.0)],
            *[0.0] * (2 * free),
        ]
        matrices = self._floats[self._at["matrices"]].reshape(self.rows, 4, 6)
        np.stack([step.matrix for step in steps], out=matrices[: len(steps)])
        matrices[len(steps) :] = 0.0
        self.any_norm_scaled = any(step.norm_scaled for step in steps)
        self.any_blended = any(step.blend is not None for step in steps)
        loras = {step.lora for step in steps}
        self.any_lora = any(loras)
        self.only_lora = loras.pop() if len(loras) == 1 else None
        self.any_adapter = any(step.adapter[0] for step in steps)
        if self._device is not self._host:
            self._device.copy_(self._host, non_blocking=True)

    def indices(self, name: str) -> Tensor:
        """int32, on the device."""
        return self._device[self._at[name]]

    def floats(self, name: str) -> Tensor:
        """float32, on the device."""
        return self._device[self._at[name]].view(torch.float32)

    @property
    def matrices(self) -> Tensor:
        """float32, (rows, 4, 6), on the device."""
        return self.floats("matrices").view(self.rows, 4, 6)


def _entries(steps: Sequence[RowStep]) -> tuple[list[tuple[RowStep, int]], list[int], list[int]]:
    """Each entry's row and side (0 positive, 1 negative), and per row the places of its positive and negative entry.

    Without guidance both places are the same entry: u + s (c - u) is then exactly c.
    """
    entries: list[tuple[RowStep, int]] = []
    positive: list[int] = []
    negative: list[int] = []
    for step in steps:
        negative.append(len(entries))
        if step.guidance is not None:
            entries.append((step, 1))
        positive.append(len(entries))
        entries.append((step, 0))
    return entries, positive, negative


class BlockRing:
    """Blocks that are used over and over: their host sides are pinned memory, which is slow to come by.

    A block comes round again only after ``depth`` steps of its size; the host is never that far ahead of the device
    (``pipelines.flags.AHEAD``), so that no copy is overwritten on its way.
    """

    def __init__(self, device: torch.device, *, depth: int) -> None:
        self._device = device
        self._depth = depth
        self._rings: dict[tuple[int, int], deque[StepBlock]] = {}

    def next(self, *, entries: int, rows: int) -> StepBlock:
        """A block of exactly this size."""
        ring = self._rings.setdefault((entries, rows), deque())
        if len(ring) < self._depth:
            ring.append(StepBlock(entries=entries, rows=rows, device=self._device))
        else:
            ring.rotate(-1)
        return ring[-1]
