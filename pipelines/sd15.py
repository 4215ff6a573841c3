"""Stable Diffusion 1.5: a UNet over 4-channel latents, conditioned on CLIP's last hidden state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Self

from pipelines.checkpoint import Checkpoint
from pipelines.clip import ClipEncoder, equally_long
from pipelines.device import pick_dtype
from pipelines.errors import Error
from pipelines.host import Host
from pipelines.model import ModelSpec
from pipelines.placement import Part, Placement
from pipelines.prompt import Embedding, EmbeddingCache, Wording, encode_texts
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
        self.cache = EmbeddingCache()

    @classmethod
    def load(cls, spec: ModelSpec, host: Host) -> Self:
        """From a checkpoint; BrokenCheckpoint says which file is wrong and how."""
        from diffusers import AutoencoderKL, UNet2DConditionModel
        from transformers import CLIPTextModel, CLIPTokenizer

        placement = Placement(spec.offload, host.device)
        checkpoint = Checkpoint.open(
            spec,
            dtype=pick_dtype(spec.dtype, host.device),
            device=placement.loading_device,
            shared=host.shared_for(spec.offload),
        )
        checkpoint.check_class(CLASSES)
        unet = checkpoint.load_module("unet", UNet2DConditionModel)
        tokenizer = checkpoint.load_tokenizer("tokenizer", CLIPTokenizer)
        return cls(
            unet=unet,
            vae=checkpoint.load_module("vae", AutoencoderKL),
            text_encoder=ClipEncoder(tokenizer, checkpoint.load_module("text_encoder", CLIPTextModel), normed=True),
            kind=kind_of(unet, checkpoint),
            scheduler_config=checkpoint.scheduler_config(),
            scheduler=spec.scheduler,
            dtype=checkpoint.dtype,
            placement=placement,
            slots=host.slots,
            read_input=host.read_input,
            find_lora=host.find_lora,
            components=host.shared_for(spec.offload),
        )

    def encode(self, requests: Sequence[ImageRequest]) -> list[Encoded | Error]:
        """See ``DiffusionPipeline.encode``."""
        shared = self._embed([one for one in requests if not one.reproducible], alone=False)
        alone = self._embed([one for one in requests if one.reproducible], alone=True)
        return [self._encoded(request, alone if request.reproducible else shared) for request in requests]

    def _encoded(self, request: ImageRequest, embeddings: Mapping[Wording, Embedding]) -> Encoded:
        positive, negative = embeddings[_positive(request)], None
        if self.is_guided(request):
            positive, negative = equally_long(positive, embeddings[_negative(request)], partial(self._empty, request))
        return Encoded(
            positive={**positive, **self.guidance_condition(request)},
            negative=negative,
            scale=request.guidance,
            warnings=self._text_encoder.cuts(request),
        )

    def _embed(self, requests: Sequence[ImageRequest], *, alone: bool) -> dict[Wording, Embedding]:
        wordings = [_positive(one) for one in requests]
        wordings += [_negative(one) for one in requests if self.is_guided(one)]
        return encode_texts(wordings, self._hidden, self.cache, alone=alone)

    def _empty(self, request: ImageRequest) -> Embedding:
        wording = Wording(text="", clip_skip=request.clip_skip)
        return encode_texts([wording], self._hidden, self.cache, alone=request.reproducible)[wording]

    def _hidden(self, texts: Sequence[str], clip_skip: int) -> list[Embedding]:
        with self.placement.using(Part.ENCODERS):
            return self._read(texts, clip_skip)

    def _read(self, texts: Sequence[str], clip_skip: int) -> list[Embedding]:
        chunked = [self._text_encoder.chunks(text) for text in texts]
        return [{"text": one.hidden} for one in self._text_encoder.read(chunked, clip_skip=clip_skip)]

    def added_conditions(self, conditioning: Conditioning) -> None:
        """None."""


def _positive(request: ImageRequest) -> Wording:
    return Wording(text=request.prompt, clip_skip=request.clip_skip)


def _negative(request: ImageRequest) -> Wording:
    return Wording(text=request.negative_prompt or "", clip_skip=request.clip_skip)
