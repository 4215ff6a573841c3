"""The passes of a request: ordinary requests, one after the other, each from the picture of the one before."""

from __future__ import annotations

from dataclasses import replace

from pipelines.complete import least_strength
from pipelines.request import ImageRequest, Request

#: The share of the second pass of ``highres_fix`` that is drawn anew.
HIGHRES_STRENGTH = 0.55
#: Stands for the picture of the pass before, until there is one.
CARRIED = ""


def passes(request: Request) -> tuple[Request, ...]:
    """What is done for the request, in order; all but the first start from ``CARRIED``.

    The picture that is looked at by the safety checker is the last one that is drawn.
    """
    if not isinstance(request, ImageRequest) or request.highres is None:
        return (request,)
    width, height = request.highres
    strength = max(HIGHRES_STRENGTH, least_strength(request.steps))
    return (
        replace(request, highres=None, width=width, height=height, safety=None),
        replace(request, highres=None, image=CARRIED, strength=strength),
    )
