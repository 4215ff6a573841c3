"""What a noise scheduler is to the compiler: the calls that a Stable Diffusion pipeline makes of diffusers' classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor


class NoiseScheduler(Protocol):
    """A scheduler object, stock or own. Those that start in the middle also have ``set_begin_index`` (PNDM has not),
    those that noise an image ``add_noise`` or, on flow-match models, ``scale_noise``."""

    #: Calls per requested step, by which a start offset is multiplied.
    order: int
    #: What the denoiser is given at each call, (T,).
    timesteps: Tensor

    @property
    def config(self) -> Mapping[str, Any]:
        """The options it was made with."""

    def step(self, model_output: Tensor, timestep: Tensor, sample: Tensor, *, return_dict: bool) -> tuple[Tensor, ...]:
        """Apply one output; the new sample comes first. Shapes: all (B, C, H, W)."""
