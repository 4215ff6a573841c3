"""IPNDM on the model's own noise levels: Adams-Bashforth of order four on epsilon."""

from __future__ import annotations

from collections import deque

import numpy as np
from torch import Tensor

from schedulers.sigma_space import Call, SigmaSampler

#: Adams-Bashforth weights of the newest epsilon first, by the number of epsilons known.
_WEIGHTS = {
    1: (1.0,),
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}


class IPNDMSampler(SigmaSampler):
    """The improved pseudo linear multistep method (Liu et al. 2022, arXiv 2202.09778; Zhang and Chen 2022).

    diffusers' class of this name runs on a cosine schedule from 1 to 0 that Stable Diffusion was not trained on."""

    def plan(self, steps: int) -> tuple[Call, ...]:
        last = len(self.trained) - 1
        times = np.linspace(last, 0, steps + 1)[:-1]
        levels = [*np.interp(times, np.arange(last + 1), self.trained).tolist(), 0.0]
        self._known: deque[Tensor] = deque(maxlen=4)
        return tuple(Call(sigma=levels[i], target=levels[i + 1]) for i in range(steps))

    def move(self, call: Call, index: int, eps: Tensor, sample: Tensor) -> Tensor:
        self._known.appendleft(eps)
        weights = _WEIGHTS[len(self._known)]
        slope = sum((w * e for w, e in zip(weights, self._known, strict=True)), start=0 * eps)
        return sample + (call.target - call.sigma) * slope
