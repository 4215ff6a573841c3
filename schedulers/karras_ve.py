"""KarrasVe: the stochastic sampler of "Elucidating the Design Space", churn and Heun."""

from __future__ import annotations

import math

from torch import Tensor

from schedulers.sigma_space import Call, SigmaSampler, falling, fresh_noise

#: The paper's S_churn, S_min, S_max and S_noise, with the values of diffusers' KarrasVeScheduler.
CHURN, CHURN_FROM, CHURN_TO, CHURN_NOISE = 80.0, 0.05, 50.0, 1.007


class KarrasVeSampler(SigmaSampler):
    """Algorithm 2 of Karras et al. 2022 (arXiv 2206.00364) on a geometric grid of the model's noise levels.

    A step raises the noise level a little (churn), goes down by Euler, and corrects that by Heun. The churn that opens
    a step is done at the end of the one before, so that every call of the network is followed by one update."""

    order = 2

    def plan(self, steps: int) -> tuple[Call, ...]:
        highest, lowest = float(self.trained[-1]), float(self.trained[0])
        levels = falling(highest, lowest, steps)
        gamma = min(CHURN / steps, math.sqrt(2) - 1)
        calls: list[Call] = []
        for i in range(steps):
            churned = i > 0 and CHURN_FROM <= levels[i] <= CHURN_TO
            raised = min(levels[i] * (1 + gamma), highest) if churned else levels[i]
            calls.append(Call(sigma=raised, target=levels[i + 1]))
            if levels[i + 1] > 0:
                calls.append(Call(sigma=levels[i + 1], target=levels[i + 1], second=True))
        self._first: tuple[Tensor, Tensor] | None = None
        return tuple(calls)

    def move(self, call: Call, index: int, eps: Tensor, sample: Tensor) -> Tensor:
        if not call.second:
            self._first = (sample, eps)
            return sample + (call.target - call.sigma) * eps
        assert self._first is not None, "set_begin_index refuses to start at a correction"
        before, slope = self._first
        came_from, goes_to = self.calls[index - 1].sigma, self.calls[index + 1].sigma
        corrected = before + (call.target - came_from) * 0.5 * (slope + eps)
        if goes_to <= call.target:
            return corrected
        return corrected + CHURN_NOISE * math.sqrt(goes_to**2 - call.target**2) * fresh_noise(sample)
