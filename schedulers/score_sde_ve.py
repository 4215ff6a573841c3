"""ScoreSdeVe: the predictor-corrector sampler of the variance-exploding SDE."""

from __future__ import annotations

import math

from torch import Tensor

from schedulers.sigma_space import Call, SigmaSampler, falling, fresh_noise

#: The corrector's signal-to-noise ratio: the default of diffusers' ScoreSdeVeScheduler.
SIGNAL_TO_NOISE = 0.15


class ScoreSdeVeSampler(SigmaSampler):
    """Song et al. 2021 (arXiv 2011.13456), algorithms 2 and 4: a Langevin corrector, then an ancestral predictor.

    The corrector's step size is 2 (snr |noise| / |score|)^2, the only nonlinear thing in all of the samplers. Written
    with r = |noise| / |eps| per row and score = -eps / sigma it is x - r^2 (2 snr^2 sigma) eps + r (2 snr sigma) noise:
    linear but for r, which the update computes on the device (``update.advance``)."""

    order = 2
    #: Set while the coefficients are probed, which are those of r = 1; None computes r from the tensors.
    ratio: float | None = None

    def plan(self, steps: int) -> tuple[Call, ...]:
        levels = falling(float(self.trained[-1]), float(self.trained[0]), steps)
        pairs = ((levels[i], levels[i + 1]) for i in range(steps))
        return tuple(
            call
            for high, low in pairs
            for call in (Call(sigma=high, target=high), Call(sigma=high, target=low, second=True))
        )

    def move(self, call: Call, index: int, eps: Tensor, sample: Tensor) -> Tensor:
        if call.second:
            return self._predict(call, eps, sample)
        noise = fresh_noise(sample)
        ratio = self.ratio if self.ratio is not None else _norm(noise) / _norm(eps)
        strength = 2 * SIGNAL_TO_NOISE * call.sigma
        return sample - ratio**2 * (strength * SIGNAL_TO_NOISE) * eps + ratio * strength * noise

    def _predict(self, call: Call, eps: Tensor, sample: Tensor) -> Tensor:
        lost = call.sigma**2 - call.target**2
        moved = sample - (lost / call.sigma) * eps
        if call.target == 0:
            return moved
        # The ancestral form keeps the marginal exact; the reverse SDE's own sqrt(lost) leaves too much variance.
        return moved + math.sqrt(lost) * call.target / call.sigma * fresh_noise(sample)


def _norm(rows: Tensor) -> Tensor:
    """Euclidean norm of each row, (B, 1, 1, 1); at least 1e-12."""
    norms: Tensor = rows.flatten(1).norm(dim=1)
    return norms.clamp_min(1e-12).reshape(-1, *[1] * (rows.ndim - 1))
