"""Stable Diffusion 1.5: a UNet over 4-channel latents, conditioned on CLIP's last hidden state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Self

from pipelines.clip import ClipEncoder, equally_long
from pipelines.host import Host
from pipelines.model import ModelSpec
from pipelines.opening import Opening
from pipelines.placement import Part
from pipelines.prompt import Embedding, Reading, Wording
from pipelines.request import ImageRequest
from pipelines.rows import Encoded
from pipelines.step import Conditioning
from pipelines.unet import UNetPipeline, kind_of

#: What ``model_index.json`` may name.
CLASSES = (
    "StableDiffusionPipeline",
    "StableDiffusionImg2ImgPipeline",
    "StableDiffusionInpaintPipeline",
    "LatentConsistencyModelPipeline",
)


class StableDiffusion15(UNetPipeline):
    """As diffusers' ``StableDiffusionPipeline``, ``…Img2Img…`` and ``…Inpaint…`` draw it (Rombach et al. 2022)."""

    def __init__(self, *, text_encoder: ClipEncoder, **shared: Any) -> None:
        super().__init__(**shared)
        self._text_encoder = text_encoder
        self.placement.add(Part.ENCODERS, text_encoder.model)

    @classmethod
    def load(cls, spec: ModelSpec, host: Host) -> Self:
        """From a checkpoint; BrokenCheckpoint says which file is wrong and how."""
        from diffusers import UNet2DConditionModel
        from transformers import CLIPTextModel, CLIPTokenizer

        opening = Opening(spec, host, CLASSES)
        checkpoint = opening.checkpoint
        unet = checkpoint.load_module("unet", UNet2DConditionModel)
        tokenizer = checkpoint.load_tokenizer("tokenizer", CLIPTokenizer)
        return cls(
            unet=unet,
            vaes=opening.vaes(),
            text_encoder=ClipEncoder(tokenizer, checkpoint.load_module("text_encoder", CLIPTextModel), normed=True),
            kind=kind_of(unet, checkpoint),
            **opening.shared_arguments(),
        )

    def condition(self, request: ImageRequest, reading: Reading, embeddings: Mapping[Wording, Embedding]) -> Encoded:
        """See ``DiffusionPipeline.condition``."""
        wordings = self.wordings(request, reading)
        positive, negative = embeddings[wordings[0]], None
        if self.is_guided(request):
            empty = partial(self.embed, reading.wording("", clip_skip=request.clip_skip), request)
            positive, negative = equally_long(positive, embeddings[wordings[1]], empty)
        return Encoded(
            positive={**positive, **self.guidance_condition(request)},
            negative=negative,
            scale=request.guidance,
            warnings=self._text_encoder.cuts(request, reading.inversions),
        )

    def wordings(self, request: ImageRequest, reading: Reading) -> list[Wording]:
        """See ``DiffusionPipeline.wordings``."""
        texts = [request.prompt, request.negative_prompt or ""] if self.is_guided(request) else [request.prompt]
        return [reading.wording(text, clip_skip=request.clip_skip) for text in texts]

    def read_texts(self, wordings: Sequence[Wording], clip_skip: int) -> list[Embedding]:
        """See ``DiffusionPipeline.read_texts``."""
        encoder = self._text_encoder
        chunked = [encoder.chunks(one.text, one.inversions) for one in wordings]
        overlays = [one.overlay(encoder.name) for one in wordings]
        return [{"text": one.hidden} for one in encoder.read(chunked, clip_skip=clip_skip, overlays=overlays)]

    @property
    def encoders(self) -> tuple[ClipEncoder, ...]:
        """CLIP."""
        return (self._text_encoder,)

    def added_conditions(self, conditioning: Conditioning) -> None:
        """None."""
