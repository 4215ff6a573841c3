"""A loaded VAE: pictures to latents and back."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from torch import Tensor

from pipelines.images import Posterior


class Vae:
    """An ``AutoencoderKL``, wherever it was loaded from."""

    def __init__(self, module: Any, *, key: Hashable = None) -> None:
        self.module = module
        #: What tells its encodings from another VAE's; None: it is the model's own.
        self.key = key
        #: Pixels per latent, on a side.
        self.factor: int = 2 ** (len(module.config.block_out_channels) - 1)

    @property
    def bytes(self) -> int:
        """Of its weights."""
        return sum(weight.nbytes for weight in self.module.state_dict().values())

    def encode(self, image: Tensor) -> Posterior:
        """(1, 3, height, width), -1 .. 1 -> the posterior of its latents."""
        distribution = self.module.encode(image.to(self.module.dtype)).latent_dist
        return Posterior(mean=distribution.mean[0].float(), std=distribution.std[0].float())

    def scale(self, sample: Tensor) -> Tensor:
        """A posterior's sample, shifted and scaled to what the denoiser takes; any leading axes."""
        config = self.module.config
        shifted = sample if config.shift_factor is None else sample - config.shift_factor
        scaled: Tensor = config.scaling_factor * shifted
        return scaled

    def decode(self, latents: Tensor, *, tiled: bool = False) -> Tensor:
        """(rows, channels, height / factor, width / factor) in the denoiser's scale -> (rows, 3, height, width).

        -1 .. 1. ``tiled``: tile by tile, in less memory, with faint seams.
        """
        config = self.module.config
        samples = latents / config.scaling_factor
        if config.shift_factor is not None:
            samples = samples + config.shift_factor
        if tiled:
            self.module.enable_tiling()
        try:
            image: Tensor = self.module.decode(samples.to(self.module.dtype), return_dict=False)[0]
        finally:
            # The same switch holds for encoding, and the module may be another model's, too.
            self.module.disable_tiling()
        return image
