"""Input pictures and masks as tensors, and as what a VAE makes of them."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pipelines.base import Pixels
from pipelines.errors import InvalidRequest
from pipelines.inputs import ReadInput
from pipelines.lru import BytesLru
from pipelines.request import ImageRequest, Task

#: Bytes of posteriors kept per model; one of a 1024 x 1024 picture takes 512 KiB (Flux 2 MiB).
CACHE_BYTES = 128 * 2**20


@dataclass(frozen=True, kw_only=True)
class Posterior:
    """Mean and deviation of a VAE's latents for one picture: what may be cached; a sample may not."""

    #: float32, (channels, height / 8, width / 8).
    mean: Tensor
    std: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        """mean + std x noise."""
        return self.mean + self.std * noise.to(self.mean.device)


#: (3, height, width), -1 .. 1 -> posterior.
Encode = Callable[[Tensor], Posterior]


@dataclass(frozen=True, kw_only=True)
class Source:
    """What an img2img or inpaint row starts from."""

    image: Posterior
    masked: Posterior | None = None
    #: float32, (1, height, width), 0 or 1; 1 is repainted.
    mask: Tensor | None = None


def to_tensor(pixels: Pixels, width: int, height: int) -> Tensor:
    """(3, height, width) float32, -1 .. 1; another size is resized with Lanczos, as diffusers' image processor does."""
    if pixels.shape[:2] != (height, width):
        pixels = np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS))
    scaled = torch.from_numpy(pixels.astype(np.float32) / 255.0)
    return scaled.permute(2, 0, 1) * 2.0 - 1.0


def to_mask(pixels: Pixels, width: int, height: int) -> Tensor:
    """(1, height, width) float32 of 0 and 1; white (from half up) is repainted, another size is resized nearest."""
    grey = pixels[:, :, 0]
    if grey.shape != (height, width):
        grey = np.asarray(Image.fromarray(grey).resize((width, height), Image.Resampling.NEAREST))
    return torch.from_numpy((grey.astype(np.float32) / 255.0 >= 0.5).astype(np.float32))[None]


class Sources:
    """Makes what rows start from; a picture is encoded once per size, and once per mask."""

    def __init__(self, read: ReadInput | None) -> None:
        self.read = read
        self._cache: BytesLru[Posterior] = BytesLru(CACHE_BYTES, lambda one: one.mean.nbytes + one.std.nbytes)

    def source(self, request: ImageRequest, encode: Encode, vae: Hashable) -> Source | None:
        """None for text2img. ``vae`` tells apart what different VAEs encode.

        Raises ``pipelines.errors.Error`` when an input is gone.
        """
        if request.task is Task.TEXT2IMG:
            return None
        assert request.image is not None
        size = request.width, request.height
        image = self._posterior((vae, request.image, None, *size), encode, lambda: self._tensor(request))
        if request.mask is None:
            return Source(image=image)
        mask = to_mask(self.pixels(request.mask), *size)
        key = (vae, request.image, request.mask, *size)
        masked = self._posterior(key, encode, lambda: self._tensor(request) * (mask < 0.5))
        return Source(image=image, masked=masked, mask=mask)

    def _posterior(self, key: Hashable, encode: Encode, make: Callable[[], Tensor]) -> Posterior:
        found = self._cache.get(key)
        if found is None:
            found = encode(make())
            self._cache.put(key, found)
        return found

    def _tensor(self, request: ImageRequest) -> Tensor:
        assert request.image is not None
        return to_tensor(self.pixels(request.image), request.width, request.height)

    def pixels(self, name: str) -> Pixels:
        """A stored input; see ``ReadInput``."""
        if self.read is None:
            raise InvalidRequest("this engine has no input pictures")
        return self.read(name)
