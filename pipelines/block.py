"""The inputs of one step: short arrays that say which slots take part and how, sent to the device in one copy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

#: Words per matrix: [x', h1', h2', h3'] from [x, h1, h2, h3, out, noise].
MATRIX = 4 * 6


@dataclass(frozen=True, kw_only=True, slots=True)
class RowStep:
    """One row's part in a step."""

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


class StepBlock:
    """Host and device side of the arrays, for a fixed number of entries and rows.

    Everything lies in one int32 buffer (floats as their bits), so that a step costs one copy. With more places than
    rows, the rest is padding that reads and writes the pool's scratch slot with an identity-free zero matrix.
    """

    def __init__(self, *, entries: int, rows: int, device: torch.device) -> None:
        self.entries = entries
        self.rows = rows
        words = 4 * entries + (7 + MATRIX) * rows
        pinned = device.type == "cuda"
        self._host = torch.zeros(words, dtype=torch.int32, pin_memory=pinned)
        self._device = self._host if device.type == "cpu" else torch.zeros(words, dtype=torch.int32, device=device)
        self._ints = self._host.numpy()
        self._floats = self._host.view(torch.float32).numpy()
        self._at: dict[str, slice] = {}
        start = 0
        for name, length in (
            ("entry_slot", entries),
            ("entry_conditioning", entries),
            ("timestep", entries),
            ("input_scale", entries),
            ("row_slot", rows),
            ("row_positive", rows),
            ("row_negative", rows),
            ("guidance", rows),
            ("norm_scaled", rows),
            ("blend", 2 * rows),
            ("matrices", MATRIX * rows),
        ):
            self._at[name] = slice(start, start + length)
            start += length
        #: Some row of the step scales by norms, or blends; decided on the host because it changes what is launched.
        self.any_norm_scaled = False
        self.any_blended = False

    def fill(self, steps: Sequence[RowStep], *, scratch: int) -> None:
        """Writes the host side and sends it; ValueError when the rows do not fit."""
        entry_slot: list[int] = []
        entry_conditioning: list[int] = []
        timestep: list[float] = []
        input_scale: list[float] = []
        positive: list[int] = []
        negative: list[int] = []
        for step in steps:
            positive.append(len(entry_slot))
            if step.guidance is not None:
                entry_slot.append(step.slot)
                entry_conditioning.append(2 * step.slot + 1)
                timestep.append(step.timestep)
                input_scale.append(step.input_scale)
            # Without guidance both sides are the same entry: u + s (c - u) is then exactly c.
            negative.append(positive[-1])
            positive[-1] = len(entry_slot)
            entry_slot.append(step.slot)
            entry_conditioning.append(2 * step.slot)
            timestep.append(step.timestep)
            input_scale.append(step.input_scale)
        if len(entry_slot) > self.entries or len(steps) > self.rows:
            raise ValueError(f"{len(entry_slot)} entries of {len(steps)} rows do not fit {self.entries} of {self.rows}")
        self._put(self._ints, "entry_slot", entry_slot, scratch)
        self._put(self._ints, "entry_conditioning", entry_conditioning, 2 * scratch)
        self._put(self._floats, "timestep", timestep, 0.0)
        self._put(self._floats, "input_scale", input_scale, 0.0)
        self._put(self._ints, "row_slot", [step.slot for step in steps], scratch)
        self._put(self._ints, "row_positive", positive, 0)
        self._put(self._ints, "row_negative", negative, 0)
        self._put(self._floats, "guidance", [step.guidance or 0.0 for step in steps], 0.0)
        self._put(self._floats, "norm_scaled", [float(step.norm_scaled) for step in steps], 0.0)
        self._put(self._floats, "blend", [share for step in steps for share in step.blend or (1.0, 0.0)], 0.0)
        matrices = self._floats[self._at["matrices"]].reshape(self.rows, 4, 6)
        np.stack([step.matrix for step in steps], out=matrices[: len(steps)])
        matrices[len(steps) :] = 0.0
        self.any_norm_scaled = any(step.norm_scaled for step in steps)
        self.any_blended = any(step.blend is not None for step in steps)
        if self._device is not self._host:
            self._device.copy_(self._host, non_blocking=True)

    def _put(self, words: NDArray[np.generic], name: str, values: Sequence[float], padding: float) -> None:
        place = words[self._at[name]]
        place[: len(values)] = values
        place[len(values) :] = padding

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
