"""Stable Diffusion 1.5: a UNet over 4-channel latents, conditioned on CLIP's last hidden state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

from torch import Tensor

from pipelines.checkpoint import Checkpoint
from pipelines.device import pick_dtype
from pipelines.errors import Error
from pipelines.host import Host
from pipelines.model import ModelSpec
from pipelines.placement import Part, Placement
from pipelines.prompt import Embedding, EmbeddingCache, TextEncoder, encode_texts
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

    def __init__(self, *, text_encoder: TextEncoder, **shared: Any) -> None:
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
            text_encoder=TextEncoder(tokenizer, checkpoint.load_module("text_encoder", CLIPTextModel)),
            kind=kind_of(unet, checkpoint),
            scheduler_config=checkpoint.scheduler_config(),
            scheduler=spec.scheduler,
            dtype=checkpoint.dtype,
            placement=placement,
            slots=host.slots,
            read_input=host.read_input,
        )

    def encode(self, requests: Sequence[ImageRequest]) -> list[Encoded | Error]:
        """See ``DiffusionPipeline.encode``."""
        shared = self._embed([one for one in requests if not one.reproducible], alone=False)
        alone = self._embed([one for one in requests if one.reproducible], alone=True)
        return [self._encoded(request, alone if request.reproducible else shared) for request in requests]

    def _encoded(self, request: ImageRequest, embeddings: Mapping[str, Embedding]) -> Encoded:
        positive = {**embeddings[request.prompt], **self.guidance_condition(request)}
        guided = self.is_guided(request)
        return Encoded(
            positive=positive,
            negative=embeddings[request.negative_prompt or ""] if guided else None,
            scale=request.guidance,
            warnings=self._text_encoder.cuts(request),
        )

    def _embed(self, requests: Sequence[ImageRequest], *, alone: bool) -> dict[str, Embedding]:
        texts = [one.prompt for one in requests]
        texts += [one.negative_prompt or "" for one in requests if self.is_guided(one)]
        return encode_texts(texts, self._hidden, self.cache, alone=alone)

    def _hidden(self, texts: Sequence[str]) -> Mapping[str, Tensor]:
        with self.placement.using(Part.ENCODERS):
            return self._read(texts)

    def _read(self, texts: Sequence[str]) -> Mapping[str, Tensor]:
        return {"text": self._text_encoder(texts)[0]}

    def added_conditions(self, conditioning: Conditioning) -> None:
        """None."""
