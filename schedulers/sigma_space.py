"""Samplers of our own, on the noise levels that a Stable Diffusion model was trained on.

They work as the k-diffusion samplers do: x lives in variance-exploding space, x = clean + sigma * noise, the network
sees x / sqrt(sigma^2 + 1) at the timestep whose trained noise level is sigma (Karras et al. 2022, arXiv 2206.00364).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from schedulers.errors import OptionRefused


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call of the network."""

    #: Noise level that the network sees, and that x has.
    sigma: float
    #: Noise level that the update goes to.
    target: float
    #: The second call of a pair, which corrects the first (Heun), or the predictor after a corrector.
    second: bool = False


class SigmaSampler(ABC):
    """What the samplers of our own share; a subclass says where the calls are and how x moves."""

    order = 1

    def __init__(self, alphas_cumprod: Tensor, prediction_type: str) -> None:
        """``alphas_cumprod`` (N,): the model's cumulated alphas, float; ``prediction_type``: epsilon, v_prediction or
        sample. Raises OptionRefused on another."""
        if prediction_type not in ("epsilon", "v_prediction", "sample"):
            public = type(self).__name__.removesuffix("Sampler") + "Scheduler"
            raise OptionRefused(public, "prediction_type", prediction_type)
        alphas: NDArray[np.float64] = alphas_cumprod.double().numpy()
        self.config: Mapping[str, Any] = {"prediction_type": prediction_type}
        #: Trained noise levels, rising, (N,).
        self.trained: NDArray[np.float64] = np.sqrt((1 - alphas) / alphas)
        self.timesteps = torch.zeros(0)
        self.calls: tuple[Call, ...] = ()
        self._index = 0

    @abstractmethod
    def plan(self, steps: int) -> tuple[Call, ...]:
        """The calls of ``steps`` steps, in order."""

    @abstractmethod
    def move(self, call: Call, index: int, eps: Tensor, sample: Tensor) -> Tensor:
        """The sample after ``call``, the ``index``-th; ``eps``: predicted noise, ``sample``: x, both (B, ...)."""

    def set_timesteps(self, steps: int) -> None:
        """Lay out the calls of ``steps`` steps and forget what was sampled before."""
        self.calls = self.plan(steps)
        levels = np.log([call.sigma for call in self.calls])
        # Between two trained levels the network takes a fractional timestep.
        times = np.interp(levels, np.log(self.trained), np.arange(len(self.trained)))
        self.timesteps = torch.tensor(times, dtype=torch.float32)
        self._index = 0

    def set_begin_index(self, begin_index: int) -> None:
        """Start at this call, which must be the first of its step."""
        if begin_index % self.order:
            raise ValueError(f"call {begin_index} is not the first of its step")
        self._index = begin_index

    @property
    def init_noise_sigma(self) -> float:
        """Factor of the first latents of a drawing from pure noise: the deviation of x for data of deviation one."""
        return float(np.sqrt(self.calls[0].sigma ** 2 + 1))

    def scale_model_input(self, sample: Tensor, timestep: Tensor) -> Tensor:
        """What the network is given for ``sample``; the position, not ``timestep``, says the level."""
        return sample / float(np.sqrt(self.calls[self._index].sigma ** 2 + 1))

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """The clean sample at the noise level of the next call."""
        return original_samples + self.calls[min(self._index, len(self.calls) - 1)].sigma * noise

    def epsilon_weights(self, call: Call) -> tuple[float, float]:
        """Shares of the network's output and of the sample in the noise that the sample holds."""
        kind, sigma = self.config["prediction_type"], call.sigma
        if kind == "epsilon":
            return 1.0, 0.0
        if kind == "sample":
            return -1 / sigma, 1 / sigma
        return 1 / math.sqrt(sigma**2 + 1), sigma / (sigma**2 + 1)

    def step(
        self, model_output: Tensor, timestep: Tensor, sample: Tensor, *, return_dict: bool = False
    ) -> tuple[Tensor, ...]:
        """Apply the output of the call at the present position, and go on to the next."""
        call, index = self.calls[self._index], self._index
        of_output, of_sample = self.epsilon_weights(call)
        moved = self.move(call, index, of_output * model_output + of_sample * sample, sample)
        self._index += 1
        return (moved,)


#: The furthest that a step goes down. Beyond, Heun's correction, taken at the lower level, overshoots: two steps from
#: sigma 14.6 to 0.03 leave a deviation of 7 instead of 0.3. On Stable Diffusion it tells up to five steps.
_FURTHEST = 4.0


def falling(highest: float, lowest: float, steps: int) -> list[float]:
    """``steps`` noise levels in geometric progression, as for the VE SDE of Song et al. 2021, then zero."""
    if steps == 1:
        return [highest, 0.0]
    lowest = max(lowest, highest / _FURTHEST ** (steps - 1))
    return [*np.geomspace(highest, lowest, steps).tolist(), 0.0]


def fresh_noise(sample: Tensor) -> Tensor:
    """Noise of deviation one, shaped as ``sample``."""
    return torch.randn(sample.shape, dtype=sample.dtype, device=sample.device)
