"""SDXL: a UNet conditioned on two CLIP encoders' penultimate states, a pooled text and the picture's sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
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
    "StableDiffusionXLPipeline",
    "StableDiffusionXLImg2ImgPipeline",
    "StableDiffusionXLInpaintPipeline",
)


def _vae_dtype(checkpoint: Checkpoint) -> torch.dtype:
    """The model's, but float32 for a VAE that overflows in float16 and says so (diffusers' default)."""
    overflows = bool(checkpoint.read_json("vae/config.json").get("force_upcast", True))
    return torch.float32 if overflows and checkpoint.dtype is torch.float16 else checkpoint.dtype


class StableDiffusionXL(UNetPipeline):
    """As diffusers' ``StableDiffusionXLPipeline``, ``…Img2Img…`` and ``…Inpaint…`` draw it (Podell et al. 2023)."""

    repairs_offset = False

    def __init__(
        self, *, text_encoder: TextEncoder, text_encoder_2: TextEncoder, zeros_for_empty: bool, **shared: Any
    ) -> None:
        super().__init__(**shared)
        self._text_encoder = text_encoder
        self._text_encoder_2 = text_encoder_2
        self.placement.add(Part.ENCODERS, text_encoder.model, text_encoder_2.model)
        #: A negative prompt left out is zeroed embeddings, not those of "".
        self._zeros_for_empty = zeros_for_empty
        self.cache = EmbeddingCache()

    @classmethod
    def load(cls, spec: ModelSpec, host: Host) -> Self:
        """From a checkpoint; BrokenCheckpoint says which file is wrong and how."""
        from diffusers import AutoencoderKL, UNet2DConditionModel
        from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

        placement = Placement(spec.offload, host.device)
        checkpoint = Checkpoint.open(
            spec,
            dtype=pick_dtype(spec.dtype, host.device),
            device=placement.loading_device,
            shared=host.shared_for(spec.offload),
        )
        checkpoint.check_class(CLASSES)
        unet = checkpoint.load_module("unet", UNet2DConditionModel)
        index = checkpoint.read_json("model_index.json")
        return cls(
            unet=unet,
            vae=checkpoint.load_module("vae", AutoencoderKL, dtype=_vae_dtype(checkpoint)),
            text_encoder=TextEncoder(
                checkpoint.load_tokenizer("tokenizer", CLIPTokenizer),
                checkpoint.load_module("text_encoder", CLIPTextModel),
            ),
            text_encoder_2=TextEncoder(
                checkpoint.load_tokenizer("tokenizer_2", CLIPTokenizer),
                checkpoint.load_module("text_encoder_2", CLIPTextModelWithProjection),
            ),
            zeros_for_empty=bool(index.get("force_zeros_for_empty_prompt", True)),
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
        text = embeddings[request.prompt]
        sizes = self._sizes(request)
        negative: Conditioning | None = None
        if self.is_guided(request):
            side = self._negative_text(request)
            found = (
                {name: torch.zeros_like(value) for name, value in text.items()} if side is None else embeddings[side]
            )
            negative = {**found, "time_ids": sizes}
        return Encoded(
            positive={**text, "time_ids": sizes, **self.guidance_condition(request)},
            negative=negative,
            scale=request.guidance,
            warnings=self._text_encoder.cuts(request),
        )

    def _negative_text(self, request: ImageRequest) -> str | None:
        """None: zeroed embeddings, which is what leaving the negative prompt out means here; empty is left out."""
        return request.negative_prompt or (None if self._zeros_for_empty else "")

    def _sizes(self, request: ImageRequest) -> Tensor:
        """(6,): original size, crop and target size, each as (height, width) or (top, left)."""
        size = [request.height, request.width]
        return torch.tensor([*size, 0, 0, *size], dtype=self.dtype, device=self.device)

    def _embed(self, requests: Sequence[ImageRequest], *, alone: bool) -> dict[str, Embedding]:
        texts: list[str] = []
        for request in requests:
            negative = self._negative_text(request) if self.is_guided(request) else None
            texts += [request.prompt] if negative is None else [request.prompt, negative]
        return encode_texts(texts, self._hidden, self.cache, alone=alone)

    def _hidden(self, texts: Sequence[str]) -> Mapping[str, Tensor]:
        with self.placement.using(Part.ENCODERS):
            return self._read(texts)

    def _read(self, texts: Sequence[str]) -> Mapping[str, Tensor]:
        first = self._text_encoder(texts, output_hidden_states=True)
        second = self._text_encoder_2(texts, output_hidden_states=True)
        joined = torch.cat((first.hidden_states[-2], second.hidden_states[-2]), dim=-1)
        return {"text": joined, "pooled": second[0]}

    def added_conditions(self, conditioning: Conditioning) -> Mapping[str, Tensor]:
        """Pooled text and sizes."""
        return {"text_embeds": conditioning["pooled"], "time_ids": conditioning["time_ids"]}
