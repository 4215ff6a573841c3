"""The batched update of many rows by their tables: no Python per row, nothing read back from the device."""

from __future__ import annotations

import torch
from torch import Tensor


def advance(stacked: Tensor, matrices: Tensor, norm_scaled: Tensor, *, any_norm_scaled: bool = True) -> Tensor:
    """Apply each row's matrix to its tensors: -> (R, 4, ...) float32, the new [x, h1, h2, h3].

    ``stacked`` (R, 6, ...) float32: [x, h1, h2, h3, out, noise] per row; what a row does not use must be finite, for it
    is multiplied by zero. ``matrices`` (R, 4, 6) float32: ``SamplerTable.matrices[step]`` of each row.
    ``norm_scaled`` (R,) bool: ``SamplerTable.norm_scaled[step]`` of each row. ``any_norm_scaled``: False where the
    caller knows that no row is, which skips that work (and makes a second CUDA graph).

    The same torch operations run for any number of rows, and a row's numbers do not depend on its neighbours.
    """
    if any_norm_scaled:
        matrices = _scaled(stacked, matrices, norm_scaled)
    return _product(matrices, stacked)


def _product(matrices: Tensor, stacked: Tensor) -> Tensor:
    """(R, K, 6) x (R, 6, ...) -> (R, K, ...).

    Six multiply-adds instead of one ``bmm``: a matrix product this thin gains nothing from the tensor cores, would be
    rounded to ten bits wherever TF32 is switched on, and may be summed in another order for another number of rows.
    """
    weights = matrices.reshape(*matrices.shape, *[1] * (stacked.ndim - 2))
    total = weights[:, :, 0] * stacked[:, None, 0]
    for column in range(1, 6):
        total = torch.addcmul(total, weights[:, :, column], stacked[:, None, column])
    return total


def _scaled(stacked: Tensor, matrices: Tensor, norm_scaled: Tensor) -> Tensor:
    """The matrices with r = |noise| / |eps| put in where ``norm_scaled``; eps is the row's h1'.

    x' = x + r^2 (what the table adds of x and out) + r (what it adds of noise): see ``ScoreSdeVeSampler``."""
    eps = _product(matrices[:, 1:2], stacked).flatten(1)
    noise = stacked[:, 5].flatten(1)
    ratio = (noise.norm(dim=1) / eps.norm(dim=1).clamp_min(1e-12))[:, None]
    unchanged = torch.eye(1, 6, dtype=matrices.dtype, device=matrices.device)
    factors = torch.cat([(ratio * ratio).expand(-1, 5), ratio], dim=1)
    first = unchanged + (matrices[:, 0] - unchanged) * factors
    # Other rows keep their matrix to the bit: (m - 1) + 1 is not m in float32.
    first = torch.where(norm_scaled[:, None], first, matrices[:, 0])
    return torch.cat([first[:, None], matrices[:, 1:]], dim=1)


def blend(x: Tensor, clean: Tensor, noise: Tensor, mask: Tensor, coefficients: Tensor) -> Tensor:
    """Put the kept area of an inpainted image back, at the noise level that x has now: -> (R, ...) float32.

    ``x``, ``clean``, ``noise`` (R, C, ...): latents, the image's own latents, the noise they were first mixed with.
    ``mask`` broadcasts against x, 0 to 1: 1 is repainted, 0 kept. ``coefficients`` (R, 2): ``SamplerTable.blend[step]``
    of each row.
    """
    shares = coefficients.reshape(*coefficients.shape, *[1] * (x.ndim - 1))
    kept = shares[:, 0] * clean + shares[:, 1] * noise
    return (1 - mask) * kept + mask * x
