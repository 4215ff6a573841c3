"""The passes of a request: ordinary requests, one after the other, each from the picture of the one before."""

from __future__ import annotations

from dataclasses import replace

from pipelines.complete import least_strength
from pipelines.request import ImageRequest, Request
from pipelines.upscalers import Upscaling, default_upscaler

#: The share of the second pass of ``highres_fix`` that is drawn anew.
HIGHRES_STRENGTH = 0.55
#: Stands for the picture of the pass before, until there is one.
CARRIED = ""


def passes(request: Request) -> tuple[Request, ...]:
    """What is done for the request, in order; all but the first start from ``CARRIED``.

    The picture that the safety checker looks at is the last one that is drawn; what replaces it is enlarged as well.
    """
    if not isinstance(request, ImageRequest):
        return (request,)
    drawn = _drawn(replace(request, highres=None, upscale=1), request.highres)
    if request.upscale == 1:
        return drawn
    enlargement = Upscaling(
        upscaler=default_upscaler(request.upscale),
        image=CARRIED,
        size=(request.width, request.height),
        factor=request.upscale,
        samples=request.samples,
        seed=request.seed,
        priority=request.priority,
    )
    return (*drawn, enlargement.request())


def expected_calls(request: Request) -> int:
    """Calls of models in all passes, as far as that is known before they are conditioned."""
    return sum(one.calls for one in passes(request))


def _drawn(request: ImageRequest, highres: tuple[int, int] | None) -> tuple[ImageRequest, ...]:
    if highres is None:
        return (request,)
    width, height = highres
    strength = max(HIGHRES_STRENGTH, least_strength(request.steps))
    return (
        replace(request, width=width, height=height, safety=None),
        replace(request, image=CARRIED, strength=strength),
    )
