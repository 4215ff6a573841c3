"""Upscalers by name, and what the engine is asked of them: any thread may read it, nothing here needs a network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from pipelines.request import ImageRequest
from pipelines.tiles import cut

#: Their family, and what the engine's names of them begin with: files are named by operators, as models are.
FAMILY = "upscaler"
PREFIX = f"{FAMILY}:"

#: As published, with the factor of the network, best first.
KNOWN: Mapping[str, int] = MappingProxyType(
    {
        "RealESRGAN_x4plus": 4,
        "realesr-general-x4v3": 4,
        "RealESRNet_x4plus": 4,
        "RealESRGAN_x4plus_anime_6B": 4,
        "RealESRGAN_x2plus": 2,
    }
)
#: Other names for them, in lower case.
ALIASES: Mapping[str, str] = MappingProxyType({"ultra_resolution": "RealESRGAN_x4plus"})
#: The largest factor, and the largest picture that comes of it, in pixels.
MAX_FACTOR = 8
MAX_PIXELS = 2**25

#: Sides of what a network sees at a time, and the pixels around a tile that it only sees: what is farther away changes
#: nothing that 8 bits show. Both are multiples of every network's ``multiple``.
TILE, MARGIN = 256, 32
#: Tiles per step.
TILES = 2
#: Pixels per step of what is resized on the host.
BAND_PIXELS = 2**20


def default_upscaler(factor: int) -> str:
    """The engine's name for whatever is best for a factor among what is there."""
    return f"{PREFIX}{factor}x"


def candidates(factor: int) -> list[str]:
    """Best first: networks of that very factor, then of a larger, then of a smaller."""
    return sorted(KNOWN, key=lambda name: (KNOWN[name] < factor, abs(KNOWN[name] - factor)))


@dataclass(frozen=True, kw_only=True)
class Upscaling:
    """A picture to be made larger."""

    #: The engine's name of it.
    upscaler: str
    #: As ``ImageRequest.image``, with its width and height.
    image: str
    size: tuple[int, int]
    factor: int
    samples: int = 1
    seed: int = 0
    safety: str | None = None
    priority: int = 0

    def request(self) -> ImageRequest:
        """What the engine is asked: the upscaler is a model like others, and makes the picture as large as it says."""
        width, height = (side * self.factor for side in self.size)
        return ImageRequest(
            model=self.upscaler,
            prompt="",
            width=width,
            height=height,
            samples=self.samples,
            steps=_expected_steps(self.size, (width, height)),
            guidance=1.0,
            seed=self.seed,
            image=self.image,
            safety=self.safety,
            priority=self.priority,
        )


def _expected_steps(size: tuple[int, int], wanted: tuple[int, int]) -> int:
    """Tiles through a network, then bands on the host."""
    across, down = (len(cut(side, TILE, MARGIN)) for side in size)
    return -(-across * down // TILES) + -(-wanted[0] * wanted[1] // BAND_PIXELS)
