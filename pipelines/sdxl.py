"""SDXL: a UNet conditioned on two CLIP encoders' penultimate states, a pooled text and the picture's sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor

from pipelines.checkpoint import Checkpoint
from pipelines.clip import Chunk, ClipEncoder, equally_long
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

#: SDXL never reads the last layer: a clip_skip of 1 is one of 2.
LEAST_SKIP = 2
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
        self, *, text_encoder: ClipEncoder, text_encoder_2: ClipEncoder, zeros_for_empty: bool, **shared: Any
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
            text_encoder=ClipEncoder(
                checkpoint.load_tokenizer("tokenizer", CLIPTokenizer),
                checkpoint.load_module("text_encoder", CLIPTextModel),
                normed=False,
            ),
            text_encoder_2=ClipEncoder(
                checkpoint.load_tokenizer("tokenizer_2", CLIPTokenizer),
                checkpoint.load_module("text_encoder_2", CLIPTextModelWithProjection),
                normed=False,
                pooled="text_embeds",
            ),
            zeros_for_empty=bool(index.get("force_zeros_for_empty_prompt", True)),
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
        positive, sizes = embeddings[_wording(request, request.prompt)], self._sizes(request)
        negative: Conditioning | None = None
        if self.is_guided(request):
            text = self._negative_text(request)
            if text is None:
                side: Embedding = {name: torch.zeros_like(value) for name, value in positive.items()}
            else:
                side = embeddings[_wording(request, text)]
            positive, side = equally_long(positive, side, partial(self._empty, request))
            negative = {**side, "time_ids": sizes}
        return Encoded(
            positive={**positive, "time_ids": sizes, **self.guidance_condition(request)},
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

    def _embed(self, requests: Sequence[ImageRequest], *, alone: bool) -> dict[Wording, Embedding]:
        wordings: list[Wording] = []
        for request in requests:
            wordings.append(_wording(request, request.prompt))
            negative = self._negative_text(request) if self.is_guided(request) else None
            if negative is not None:
                wordings.append(_wording(request, negative))
        return encode_texts(wordings, self._hidden, self.cache, alone=alone)

    def _empty(self, request: ImageRequest) -> Embedding:
        wording = _wording(request, "")
        return encode_texts([wording], self._hidden, self.cache, alone=request.reproducible)[wording]

    def _hidden(self, texts: Sequence[str], clip_skip: int) -> list[Embedding]:
        with self.placement.using(Part.ENCODERS):
            return self._read(texts, clip_skip)

    def _read(self, texts: Sequence[str], clip_skip: int) -> list[Embedding]:
        firsts, seconds = self._chunks(texts)
        read = zip(
            self._text_encoder.read(firsts, clip_skip=clip_skip),
            self._text_encoder_2.read(seconds, clip_skip=clip_skip),
            strict=True,
        )
        return [
            {"text": torch.cat((first.hidden, second.hidden), dim=-1), "pooled": second.pooled}
            for first, second in read
        ]

    def _chunks(self, texts: Sequence[str]) -> tuple[list[list[Chunk]], list[list[Chunk]]]:
        """Of both encoders; a text that one of them spells in fewer chunks goes on with empty ones."""
        firsts, seconds = ([encoder.chunks(text) for text in texts] for encoder in self._encoders)
        for first, second in zip(firsts, seconds, strict=True):
            count = max(len(first), len(second))
            for chunks, encoder in zip((first, second), self._encoders, strict=True):
                chunks += encoder.chunks("") * (count - len(chunks))
        return firsts, seconds

    @property
    def _encoders(self) -> tuple[ClipEncoder, ClipEncoder]:
        return self._text_encoder, self._text_encoder_2

    def added_conditions(self, conditioning: Conditioning) -> Mapping[str, Tensor]:
        """Pooled text and sizes."""
        return {"text_embeds": conditioning["pooled"], "time_ids": conditioning["time_ids"]}


def _wording(request: ImageRequest, text: str) -> Wording:
    return Wording(text=text, clip_skip=max(request.clip_skip, LEAST_SKIP))
