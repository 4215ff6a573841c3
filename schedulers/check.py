"""Checks a table against the scheduler it was read from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from schedulers.probe import Drive, Inputs
from schedulers.update import advance

#: Sizes of the random samples. What clips, clips the second and not the first; a table fits one of them at most.
_SCALES = (0.1, 1000.0)


def trial(calls: int) -> Inputs:
    """What a scheduler is driven with to compile it, for T calls: three rows of 3 T elements.

    Row 0 holds the unit vectors that the coefficients are read from: one per call for the sample, one for the output,
    one for the noise. Rows 1 and 2 hold random samples and outputs, small and large, for ``largest_error``. They go
    together because the call costs more than the arithmetic (LMS integrates its weights numerically each time).
    """
    unit = torch.eye(3 * calls, dtype=torch.float64).reshape(calls, 3, 1, 3 * calls)
    generator = torch.Generator().manual_seed(0)
    noisy = torch.randn((calls, 3, len(_SCALES), 3 * calls), generator=generator, dtype=torch.float64)
    noisy[:, :2] *= torch.tensor(_SCALES, dtype=torch.float64)[:, None]
    samples, outputs, noises = torch.cat([unit, noisy], dim=2).unbind(1)
    return Inputs(samples=samples, outputs=outputs, noises=noises)


def largest_error(matrices: NDArray[np.float32], norm_scaled: Sequence[bool], inputs: Inputs, run: Drive) -> float:
    """The largest distance of a step of the table from the scheduler's, relative to the scheduler's.

    ``matrices`` (T, 4, 6); ``run``: what the scheduler did with ``inputs``, all finite."""
    rows = len(_SCALES)
    hidden = torch.zeros(rows, 3, inputs.samples.shape[-1], dtype=torch.float64)
    errors = []
    for t, matrix in enumerate(torch.from_numpy(matrices).double()):
        sample, output, noise = (part[t, 1:, None] for part in (inputs.samples, inputs.outputs, inputs.noises))
        stacked = torch.cat([sample, hidden, output, noise * run.draws[t]], dim=1)
        scaled = torch.full((rows,), norm_scaled[t])
        moved = advance(stacked, matrix.expand(rows, -1, -1), scaled, any_norm_scaled=norm_scaled[t])
        expected = run.moved[t, 1:]
        hidden = moved[:, 1:]
        errors.append((moved[:, 0] - expected).norm(dim=1) / expected.norm(dim=1))
    return float(torch.stack(errors).max())
