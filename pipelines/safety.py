"""Finished pictures are looked at by Stable Diffusion's safety checker, whatever family drew them.

What it flags is replaced; of everything else not one pixel is touched.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from pipelines.base import Pixels
from pipelines.errors import BrokenCheckpoint, Error, OutOfMemory

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

#: Pictures looked at together; beyond, the network gains nothing and its peak memory grows.
CHECK_ROWS = 8
#: A hidden picture keeps about so many details along its shorter side: colours, and no forms.
DETAILS = 12
SENTENCE = "Sensitive\ncontent"
#: The share of a picture's width and height that the sentence may fill.
FILL = 0.75
#: Grey levels of the card and of the sentence on it.
CARD, INK = 32, 235

#: Components of the SD1.5 repository that the checker is made of.
CHECKER, PROCESSOR = "safety_checker", "feature_extractor"


@dataclass(frozen=True, kw_only=True)
class CheckerFiles:
    """Where a checker lies."""

    #: Holds the folders ``CHECKER`` and ``PROCESSOR``.
    folder: Path
    #: Key of ``pipelines.demo.BUILDERS`` when the folder is a demo checkpoint, made at first need; else None.
    demo: str | None = None


@dataclass(frozen=True, kw_only=True)
class Checked:
    """A picture that was looked at, replaced if it was flagged."""

    pixels: Pixels
    flagged: bool


#: Pictures of one size and what each is to be replaced by, a key of ``REPLACEMENTS``; as many come back, in order.
Check = Callable[[Sequence[Pixels], Sequence[str]], list[Checked | Error]]


def refuse_unchecked(pictures: Sequence[Pixels], replacements: Sequence[str]) -> list[Checked | Error]:
    """The check of a place without a checker: what was to be looked at never leaves unseen."""
    raise BrokenCheckpoint("the picture cannot be checked: the safety checker's weights are not here")


class SafetyChecker:
    """A loaded checker: CLIP's picture encoder, whose embeddings are compared with those of 20 concepts.

    See diffusers' ``StableDiffusionSafetyChecker`` and Rando et al. 2022, "Red-Teaming the Stable Diffusion Safety
    Filter".
    """

    def __init__(self, files: CheckerFiles, model: Any, processor: Any) -> None:
        #: What it was loaded from.
        self.files = files
        self._model = model
        self._processor = processor

    @property
    def bytes(self) -> int:
        """What its weights take."""
        return sum(tensor.nbytes for part in (self._model.parameters(), self._model.buffers()) for tensor in part)

    @classmethod
    def load(cls, files: CheckerFiles, device: torch.device) -> Self:
        """From a checkpoint's folder; BrokenCheckpoint says which file is wrong and how."""
        import torch
        from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
        from transformers import CLIPImageProcessor

        from pipelines.checkpoint import Checkpoint

        # Half precision as its weights are published; bfloat16 is too coarse for cosines near a threshold.
        dtype = torch.float16 if device.type == "cuda" else torch.float32
        checkpoint = Checkpoint(files.folder.name, files.folder, dtype=dtype, device=device)
        model = checkpoint.load_module(CHECKER, StableDiffusionSafetyChecker)
        processor = CLIPImageProcessor.from_dict(checkpoint.read_json(f"{PROCESSOR}/preprocessor_config.json"))
        return cls(files, model, processor)

    def check(self, pictures: Sequence[Pixels], replacements: Sequence[str]) -> list[Checked | Error]:
        """See ``Check``. A picture too many for the memory is an error of its own, never let through."""
        checked: list[Checked | Error] = []
        for start in range(0, len(pictures), CHECK_ROWS):
            part = slice(start, start + CHECK_ROWS)
            checked += self._check(pictures[part], replacements[part])
        return checked

    def _check(self, pictures: Sequence[Pixels], replacements: Sequence[str]) -> list[Checked | Error]:
        try:
            flags = self.flags(pictures)
        except OutOfMemory as error:
            if len(pictures) == 1:
                return [error]
            half = len(pictures) // 2
            return self._check(pictures[:half], replacements[:half]) + self._check(pictures[half:], replacements[half:])
        return [
            Checked(pixels=REPLACEMENTS[name](pixels) if flagged else pixels, flagged=flagged)
            for pixels, name, flagged in zip(pictures, replacements, flags, strict=True)
        ]

    def flags(self, pictures: Sequence[Pixels]) -> list[bool]:
        """Whether each is flagged; one forward."""
        import torch
        from PIL import Image

        from pipelines.step import translated_memory_errors

        device, dtype = self._model.concept_embeds.device, self._model.concept_embeds.dtype
        images = [Image.fromarray(pixels) for pixels in pictures]
        with torch.inference_mode(), translated_memory_errors(device):
            seen = self._processor(images, return_tensors="pt").pixel_values.to(device, dtype)
            # It blackens what it flags in place: it is given pictures of its own.
            _, flags = self._model(clip_input=seen, images=np.zeros((len(pictures), 1, 1, 3)))
        return [bool(flag) for flag in flags]


# Replacements: (height, width, 3) -> the same shape.


def blur(pixels: Pixels) -> Pixels:
    """Colours without forms, softly."""
    from PIL import ImageFilter

    return _drawn(pixels, lambda image: image.filter(ImageFilter.GaussianBlur(min(image.size) / DETAILS)))


def pixelate(pixels: Pixels) -> Pixels:
    """Colours without forms, in squares."""
    from PIL.Image import Resampling

    def squares(image: Image) -> Image:
        side = min(image.size) / DETAILS
        few = (max(round(image.width / side), 1), max(round(image.height / side), 1))
        return image.resize(few, Resampling.BOX).resize(image.size, Resampling.NEAREST)

    return _drawn(pixels, squares)


def black(pixels: Pixels) -> Pixels:
    """Nothing."""
    return np.zeros_like(pixels)


def sensitive_content_text(pixels: Pixels) -> Pixels:
    """A card that says so, as large as fits; nothing of the picture is left."""
    from PIL import Image, ImageDraw, ImageFont

    height, width, _ = pixels.shape
    card = Image.new("RGB", (width, height), (CARD, CARD, CARD))
    draw = ImageDraw.Draw(card)
    trial = 100.0
    left, top, right, bottom = draw.multiline_textbbox((0, 0), SENTENCE, font=ImageFont.load_default(trial))
    size = trial * FILL * min(width / (right - left), height / (bottom - top))
    draw.multiline_text(
        (width / 2, height / 2),
        SENTENCE,
        fill=(INK, INK, INK),
        font=ImageFont.load_default(max(size, 1.0)),
        anchor="mm",
        align="center",
    )
    return np.array(card)


def _drawn(pixels: Pixels, draw: Callable[[Image], Image]) -> Pixels:
    from PIL import Image

    return np.array(draw(Image.fromarray(pixels)))


#: What a flagged picture may be replaced by, under the names that the ModelsLab API gives them.
REPLACEMENTS: Mapping[str, Callable[[Pixels], Pixels]] = MappingProxyType(
    {
        "sensitive_content_text": sensitive_content_text,
        "blur": blur,
        "pixelate": pixelate,
        "black": black,
    }
)
