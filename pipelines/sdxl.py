"""SDXL: a UNet conditioned on two CLIP encoders' penultimate states, a pooled text and the picture's sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor

from pipelines.clip import Chunk, ClipEncoder, equally_long
from pipelines.host import Host
from pipelines.model import ModelSpec
from pipelines.opening import Opening
from pipelines.placement import Part
from pipelines.prompt import Embedding, Reading, Wording
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

    @classmethod
    def load(cls, spec: ModelSpec, host: Host) -> Self:
        """From a checkpoint; BrokenCheckpoint says which file is wrong and how."""
        from diffusers import UNet2DConditionModel
        from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

        opening = Opening(spec, host, CLASSES)
        checkpoint = opening.checkpoint
        unet = checkpoint.load_module("unet", UNet2DConditionModel)
        index = checkpoint.read_json("model_index.json")
        return cls(
            unet=unet,
            vaes=opening.vaes(upcasts=True),
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
                name="text_encoder_2",
            ),
            zeros_for_empty=bool(index.get("force_zeros_for_empty_prompt", True)),
            kind=kind_of(unet, checkpoint),
            **opening.shared_arguments(),
        )

    def condition(self, request: ImageRequest, reading: Reading, embeddings: Mapping[Wording, Embedding]) -> Encoded:
        """See ``DiffusionPipeline.condition``."""
        texts = [embeddings[wording] for wording in self.wordings(request, reading)]
        positive, sizes = texts[0], self._sizes(request)
        negative: Conditioning | None = None
        if self.is_guided(request):
            zeros: Embedding = {name: torch.zeros_like(value) for name, value in positive.items()}
            empty = partial(self.embed, _wording(request, reading, ""), request)
            positive, side = equally_long(positive, texts[1] if len(texts) > 1 else zeros, empty)
            negative = {**side, "time_ids": sizes}
        return Encoded(
            positive={**positive, "time_ids": sizes, **self.guidance_condition(request)},
            negative=negative,
            scale=request.guidance,
            warnings=self._text_encoder.cuts(request, reading.inversions),
        )

    def _negative_text(self, request: ImageRequest) -> str | None:
        """None: zeroed embeddings, which is what leaving the negative prompt out means here; empty is left out."""
        return request.negative_prompt or (None if self._zeros_for_empty else "")

    def _sizes(self, request: ImageRequest) -> Tensor:
        """(6,): original size, crop and target size, each as (height, width) or (top, left)."""
        size = [request.height, request.width]
        return torch.tensor([*size, 0, 0, *size], dtype=self.dtype, device=self.device)

    def wordings(self, request: ImageRequest, reading: Reading) -> list[Wording]:
        """See ``DiffusionPipeline.wordings``."""
        negative = self._negative_text(request) if self.is_guided(request) else None
        texts = [request.prompt] if negative is None else [request.prompt, negative]
        return [_wording(request, reading, text) for text in texts]

    def read_texts(self, wordings: Sequence[Wording], clip_skip: int) -> list[Embedding]:
        """See ``DiffusionPipeline.read_texts``."""
        chunked = self._chunks(wordings)
        read = [
            encoder.read(chunks, clip_skip=clip_skip, overlays=[one.overlay(encoder.name) for one in wordings])
            for encoder, chunks in zip(self.encoders, chunked, strict=True)
        ]
        return [
            {"text": torch.cat((first.hidden, second.hidden), dim=-1), "pooled": second.pooled}
            for first, second in zip(*read, strict=True)
        ]

    def _chunks(self, wordings: Sequence[Wording]) -> tuple[list[list[Chunk]], list[list[Chunk]]]:
        """Of both encoders; a text that one of them spells in fewer chunks goes on with empty ones."""
        firsts, seconds = ([encoder.chunks(one.text, one.inversions) for one in wordings] for encoder in self.encoders)
        for first, second in zip(firsts, seconds, strict=True):
            count = max(len(first), len(second))
            for chunks, encoder in zip((first, second), self.encoders, strict=True):
                chunks += encoder.chunks("") * (count - len(chunks))
        return firsts, seconds

    @property
    def encoders(self) -> tuple[ClipEncoder, ClipEncoder]:
        """CLIP and OpenCLIP."""
        return self._text_encoder, self._text_encoder_2

    def added_conditions(self, conditioning: Conditioning) -> Mapping[str, Tensor]:
        """Pooled text and sizes."""
        return {"text_embeds": conditioning["pooled"], "time_ids": conditioning["time_ids"]}


def _wording(request: ImageRequest, reading: Reading, text: str) -> Wording:
    return reading.wording(text, clip_skip=max(request.clip_skip, LEAST_SKIP))
