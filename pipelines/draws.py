"""What a row draws from its generator before its first step, in the order of the stock pipelines.

The generator is one stream: a draw left out, or made where stock makes none, changes everything after it.
"""

from __future__ import annotations

from enum import Enum, StrEnum, auto

from pipelines.request import Task


class Draw(Enum):
    """One tensor of normal noise."""

    #: Sample of the input picture's VAE posterior.
    IMAGE = auto()
    #: What text2img starts from, and what img2img and inpaint mix with the picture.
    NOISE = auto()
    #: Sample of the masked picture's VAE posterior; drawn even where it goes unused.
    MASKED = auto()


class Kind(StrEnum):
    """How a checkpoint inpaints."""

    #: By blending after each step: any text-to-image checkpoint.
    BLEND = "blend"
    #: By five more input channels, mask and masked picture: 9-channel UNets.
    CHANNELS = "channels"
    #: By 320 more features per token: Flux Fill.
    FILL = "fill"


#: (kind, task, strength is 1) -> draws. Read from diffusers 0.42's pipelines: StableDiffusion(XL), …Img2Img, …Inpaint,
#: Flux, FluxImg2Img, FluxInpaint, FluxFill.
DRAWS: dict[tuple[Kind, Task, bool], tuple[Draw, ...]] = {
    (Kind.BLEND, Task.TEXT2IMG, True): (Draw.NOISE,),
    (Kind.BLEND, Task.IMG2IMG, False): (Draw.IMAGE, Draw.NOISE),
    (Kind.BLEND, Task.IMG2IMG, True): (Draw.IMAGE, Draw.NOISE),
    (Kind.BLEND, Task.INPAINT, False): (Draw.IMAGE, Draw.NOISE, Draw.MASKED),
    (Kind.BLEND, Task.INPAINT, True): (Draw.IMAGE, Draw.NOISE, Draw.MASKED),
    (Kind.CHANNELS, Task.INPAINT, False): (Draw.IMAGE, Draw.NOISE, Draw.MASKED),
    # The picture is not encoded: pure noise and the masked picture are all it starts from.
    (Kind.CHANNELS, Task.INPAINT, True): (Draw.NOISE, Draw.MASKED),
    (Kind.FILL, Task.INPAINT, False): (Draw.IMAGE, Draw.NOISE, Draw.MASKED),
    (Kind.FILL, Task.INPAINT, True): (Draw.IMAGE, Draw.NOISE, Draw.MASKED),
}
