"""Turns what a scheduler did with unit vectors into one small matrix per call.

A minimal realisation of a time-varying linear system (van der Veen and Dewilde 1991): what a scheduler remembers at
call t is the part of the inputs before t that its outputs from t on depend on, and its dimension the rank of that map.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

#: Hidden tensors that a row has room for.
HIDDEN = 3
#: Later calls that are looked at to find what is remembered. No sampler hides something for longer (a third-order
#: solver needs three); the check of the finished table would notice. It keeps 300 calls from taking seconds.
_HORIZON = 8
#: Singular values below this are rounding, where steps have norm one: schedulers compute in float32.
_RANK_TOLERANCE = 3e-6
#: A step whose share of all that was before is below this, against about one of x, remembers nothing.
_NOTHING = 1e-6


def realise(response: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """-> (T, 4, 6): [x', h1', h2', h3'] = M_t [x, h1, h2, h3, out, noise]; None if three hidden tensors do not do.

    ``response`` (T, 3 T): row t holds the sample after call t as a combination of all inputs, three per call: the
    sample it was given, the network's output, the noise. Each call's sample is an input of its own, not the sample
    before it, so the matrices stay exact when a mask edits x between calls.
    """
    total = len(response)
    bases = [_remembered(response, t) for t in range(total + 1)]
    if max(len(basis) for basis in bases) > HIDDEN:
        return None
    matrices = np.zeros((total, 1 + HIDDEN, 3 + HIDDEN))
    fresh = [0, 1 + HIDDEN, 2 + HIDDEN]
    for t in range(total):
        now, later, past = bases[t], bases[t + 1], slice(0, 3 * t)
        held, kept = slice(1, 1 + len(now)), slice(1, 1 + len(later))
        matrices[t, 0, fresh] = response[t, 3 * t : 3 * t + 3]
        matrices[t, 0, held] = response[t, past] @ now.T
        matrices[t, kept, held] = later[:, past] @ now.T
        matrices[t, kept][:, fresh] = later[:, 3 * t : 3 * t + 3]
    return matrices


def _remembered(response: NDArray[np.float64], t: int) -> NDArray[np.float64]:
    """(r, 3 t): an orthonormal basis of what the calls from ``t`` on need of the inputs before."""
    future = response[t : t + _HORIZON, : 3 * t]
    if future.size == 0:
        return np.zeros((0, 3 * t))
    # Only the span counts: scaled, a step of many small shares is seen beside one of large ones (LMS's last).
    weights = np.linalg.norm(future, axis=1, keepdims=True)
    _, values, basis = np.linalg.svd(future / np.maximum(weights, _NOTHING), full_matrices=False)
    return basis[: int((values > _RANK_TOLERANCE).sum())]
