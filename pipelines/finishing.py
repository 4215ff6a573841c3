"""What is decided about the passes after the first one: a second one at the asked size, and enlarging."""

from __future__ import annotations

from math import sqrt

from pipelines.draft import ImageDraft
from pipelines.model import ModelSpec
from pipelines.request import Task
from pipelines.sizes import fit
from pipelines.upscalers import MAX_FACTOR, MAX_PIXELS

#: Side of the square that a family draws best, for models that have no size of their own.
NATIVE_SIDES = {"sd15": 512, "sdxl": 1024, "flux": 1024}


def choose_highres(
    draft: ImageDraft, model: ModelSpec, size: tuple[int, int], warnings: list[str]
) -> tuple[int, int] | None:
    """(width, height) of the first of two passes for a picture of ``size``; None: there is one pass."""
    if not draft.highres:
        return None
    if draft.task is not Task.TEXT2IMG:
        warnings.append("highres_fix was not used: it starts from a prompt alone.")
        return None
    if Task.IMG2IMG not in model.tasks:
        warnings.append(f"highres_fix was not used: {model.id} does not draw img2img.")
        return None
    width, height = size
    side = NATIVE_SIDES.get(model.family, 512)
    scale = sqrt((model.width or side) * (model.height or side) / (width * height))
    first = fit(round(width * scale), round(height * scale), model.limits)
    if scale >= 1 or first == size:
        warnings.append(f"highres_fix was not used: {model.id} draws {width} x {height} in one pass.")
        return None
    return first


def choose_upscale(asked: int | None, size: tuple[int, int], warnings: list[str], *, name: str = "upscale") -> int:
    """The factor that a picture of ``size`` is made larger by: what is asked, lowered until the result is allowed."""
    if asked is None or asked <= 1:
        return 1
    width, height = size
    used = min(asked, MAX_FACTOR)
    while used > 1 and width * height * used**2 > MAX_PIXELS:
        used -= 1
    if used != asked:
        limit = f"{MAX_FACTOR} times and {MAX_PIXELS / 1e6:.1f} million pixels are the most"
        warnings.append(f"{name} {asked} was lowered to {used}: {limit}.")
    return used
