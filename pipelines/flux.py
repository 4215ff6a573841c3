"""Flux.1: a flow-matching transformer over packed 16-channel latents, conditioned on T5 and CLIP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

import torch
from torch import Tensor

from pipelines.base import LaneKey
from pipelines.checkpoint import Checkpoint
from pipelines.diffusion import DiffusionPipeline
from pipelines.draws import Kind
from pipelines.emphasis import is_plain, parse, plain
from pipelines.errors import BrokenCheckpoint
from pipelines.flux_layout import originals
from pipelines.host import Host
from pipelines.lora_layers import LayerNames
from pipelines.lru import BytesLru
from pipelines.model import ModelSpec
from pipelines.opening import Opening
from pipelines.placement import Part
from pipelines.prompt import Embedding, Reading, TextEncoder, Wording
from pipelines.request import ImageRequest
from pipelines.rows import Encoded
from pipelines.step import Conditioning, Denoiser
from schedulers.flow import flow_for
from schedulers.table import SamplerTable

#: What ``model_index.json`` may name.
CLASSES = ("FluxPipeline", "FluxImg2ImgPipeline", "FluxInpaintPipeline", "FluxFillPipeline")
#: Channels of the VAE's latents; a token is a 2 x 2 patch of them.
CHANNELS = 16
#: Input features per token: the patch, and for Fill the masked picture's patch and its 256 mask pixels.
KINDS = {4 * CHANNELS: Kind.BLEND, 8 * CHANNELS + 256: Kind.FILL}
#: A checkpoint's own scheduler -> the public name whose flow-match table draws the same.
OWN_SCHEDULERS = {
    "FlowMatchEulerDiscreteScheduler": "EulerDiscreteScheduler",
    "FlowMatchHeunDiscreteScheduler": "HeunDiscreteScheduler",
}
#: Bytes of token positions kept; those of 1024 x 1024 take 24 KiB in 16 bits.
POSITION_BYTES = 4 * 2**20
#: T5 tokens where the model says nothing; diffusers' default.
TEXT_LENGTH = 512


def pack(latents: Tensor) -> Tensor:
    """(channels, height, width) -> (tokens, 4 channels): 2 x 2 patches, row by row."""
    channels, height, width = latents.shape
    patches = latents.view(channels, height // 2, 2, width // 2, 2).permute(1, 3, 0, 2, 4)
    return patches.reshape(height // 2 * (width // 2), 4 * channels)


def unpack(packed: Tensor, height: int, width: int) -> Tensor:
    """(rows, tokens, 4 channels) -> (rows, channels, height, width); the inverse of ``pack``."""
    rows, _, features = packed.shape
    patches = packed.view(rows, height // 2, width // 2, features // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return patches.reshape(rows, features // 4, height, width)


def position_ids(height: int, width: int) -> Tensor:
    """(tokens, 3) float32: where each token of a latent of this size lies; height and width in patches."""
    ids = torch.zeros(height, width, 3)
    ids[..., 1] += torch.arange(height)[:, None]
    ids[..., 2] += torch.arange(width)[None, :]
    return ids.view(height * width, 3)


def _own_scheduler(checkpoint: Checkpoint) -> str:
    name = checkpoint.scheduler_config()["_class_name"]
    if name not in OWN_SCHEDULERS:
        wanted = " or ".join(OWN_SCHEDULERS)
        raise BrokenCheckpoint(f"model {checkpoint.name}: the scheduler is a {name}, not {wanted}")
    return OWN_SCHEDULERS[name]


class Flux(DiffusionPipeline):
    """As diffusers' ``FluxPipeline``, ``…Img2Img…``, ``…Inpaint…`` and ``FluxFillPipeline`` draw it."""

    channel_axis = 2

    def __init__(
        self, *, transformer: Any, text_encoder: TextEncoder, text_encoder_2: TextEncoder, **shared: Any
    ) -> None:
        super().__init__(**shared)
        self.transformer = transformer
        self._clip = text_encoder
        self._t5 = text_encoder_2
        self.placement.add(Part.DENOISER, transformer)
        self.placement.add(Part.ENCODERS, text_encoder.model, text_encoder_2.model)
        self._positions: BytesLru[tuple[Tensor, Tensor]] = BytesLru(
            POSITION_BYTES, lambda pair: pair[0].nbytes + pair[1].nbytes
        )

    @classmethod
    def load(cls, spec: ModelSpec, host: Host) -> Self:
        """From a checkpoint; BrokenCheckpoint says which file is wrong and how."""
        from diffusers import FluxTransformer2DModel
        from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5TokenizerFast

        opening = Opening(spec, host, CLASSES)
        checkpoint = opening.checkpoint
        transformer = checkpoint.load_module("transformer", FluxTransformer2DModel)
        features = transformer.config.in_channels
        if features not in KINDS:
            wanted = " or ".join(map(str, KINDS))
            raise BrokenCheckpoint(f"model {spec.id}: transformer has in_channels {features}, not {wanted}")
        return cls(
            transformer=transformer,
            vaes=opening.vaes(),
            text_encoder=TextEncoder(
                checkpoint.load_tokenizer("tokenizer", CLIPTokenizer),
                checkpoint.load_module("text_encoder", CLIPTextModel),
            ),
            text_encoder_2=TextEncoder(
                checkpoint.load_tokenizer("tokenizer_2", T5TokenizerFast),
                checkpoint.load_module("text_encoder_2", T5EncoderModel),
                name="text_encoder_2",
                length=spec.text_length or TEXT_LENGTH,
            ),
            kind=KINDS[features],
            **{**opening.shared_arguments(), "scheduler": spec.scheduler or _own_scheduler(checkpoint)},
        )

    def latent_shape(self, request: ImageRequest) -> tuple[int, int, int]:
        """(16, height / 8, width / 8), both even."""
        return (CHANNELS, *self._latent_size((request.height, request.width)))

    def _latent_size(self, size: tuple[int, int]) -> tuple[int, int]:
        height, width = size
        return 2 * (height // (2 * self.factor)), 2 * (width // (2 * self.factor))

    def lane_shape(self, request: ImageRequest) -> tuple[int, ...]:
        """(tokens, 64)."""
        _, height, width = self.latent_shape(request)
        return (height // 2 * (width // 2), 4 * CHANNELS)

    def table(self, request: ImageRequest) -> SamplerTable:
        """The flow-match sampler, its noise levels shifted for the picture's size; a small strength draws one step."""
        strength = None if request.image is None else min(1.0, max(request.strength, 0.5 / request.steps))
        flow = flow_for(self.scheduler_config, self.lane_shape(request)[0])
        return self._compile(request, strength=strength, flow=flow, repair=False)

    def is_guided(self, request: ImageRequest) -> bool:
        """True classifier-free guidance: asked for, and with something to guide away from."""
        return request.true_cfg > 1 and request.negative_prompt is not None

    def condition(self, request: ImageRequest, reading: Reading, embeddings: Mapping[Wording, Embedding]) -> Encoded:
        """See ``DiffusionPipeline.condition``."""
        distilled: dict[str, Tensor] = {}
        if self.transformer.config.guidance_embeds:
            distilled["guidance"] = torch.tensor(request.guidance, dtype=torch.float32, device=self.device)
        sides = [{**embeddings[wording], **distilled} for wording in self.wordings(request, reading)]
        return Encoded(
            positive=sides[0],
            negative=sides[1] if self.is_guided(request) else None,
            scale=request.true_cfg,
            warnings=self._t5.cuts(_plain(request)) + _unweighted(request),
        )

    def wordings(self, request: ImageRequest, reading: Reading) -> list[Wording]:
        """See ``DiffusionPipeline.wordings``."""
        read = _plain(request)
        texts = [read.prompt, read.negative_prompt or ""] if self.is_guided(request) else [read.prompt]
        return [reading.wording(text) for text in texts]

    def read_texts(self, wordings: Sequence[Wording], clip_skip: int) -> list[Embedding]:
        """See ``DiffusionPipeline.read_texts``."""
        read = zip(self._t5(wordings)[0], self._clip(wordings).pooler_output, strict=True)
        return [{"text": text, "pooled": pooled} for text, pooled in read]

    @property
    def encoders(self) -> tuple[TextEncoder, ...]:
        """CLIP and T5."""
        return self._clip, self._t5

    def denoiser(self, lane: LaneKey) -> Denoiser:
        """The transformer, with the positions of the lane's tokens."""
        image_ids, text_ids = self._positions_of(lane)

        def forward(sample: Tensor, timestep: Tensor, conditioning: Conditioning) -> Tensor:
            out: Tensor = self.transformer(
                hidden_states=sample,
                timestep=timestep / 1000,
                guidance=conditioning.get("guidance"),
                pooled_projections=conditioning["pooled"],
                encoder_hidden_states=conditioning["text"],
                txt_ids=text_ids,
                img_ids=image_ids,
                return_dict=False,
            )[0]
            return out

        return forward

    def _positions_of(self, lane: LaneKey) -> tuple[Tensor, Tensor]:
        """Of the lane's image tokens and its text tokens; kept, because making them means a copy to the device."""
        key = (lane.size, lane.text)
        found = self._positions.get(key)
        if found is None:
            height, width = self._latent_size(lane.size)
            image_ids = position_ids(height // 2, width // 2).to(self.device, self.dtype)
            found = image_ids, torch.zeros(lane.text, 3, device=self.device, dtype=self.dtype)
            self._positions.put(key, found)
        return found

    @property
    def network(self) -> Any:
        """The transformer."""
        return self.transformer

    def original_layers(self) -> LayerNames:
        """Black Forest Labs' names."""
        config = self.transformer.config
        return originals(config.num_layers, config.num_single_layers)

    def pack(self, latents: Tensor) -> Tensor:
        """See the function of this name."""
        return pack(latents)

    def unpack(self, latents: Tensor, lane: LaneKey) -> Tensor:
        """See the function of this name."""
        return unpack(latents, *self._latent_size(lane.size))

    def pack_mask(self, mask: Tensor) -> Tensor:
        """(tokens, 64): the nearest pixel of each latent, once per channel, packed like them."""
        size = self._latent_size((mask.shape[-2], mask.shape[-1]))
        return pack(torch.nn.functional.interpolate(mask[None], size=size)[0].repeat(CHANNELS, 1, 1))

    def extra_channels(self, mask: Tensor, masked: Tensor) -> Tensor:
        """(tokens, 320): the masked picture's patch, then the patch's mask in pixels."""
        height, width = masked.shape[-2:]
        pixels = mask[0].view(height, self.factor, width, self.factor).permute(1, 3, 0, 2)
        return torch.cat((pack(masked), pack(pixels.reshape(self.factor**2, height, width))), dim=-1)


def _plain(request: ImageRequest) -> ImageRequest:
    """The request without weights."""
    negative = request.negative_prompt
    return replace(
        request,
        prompt=plain(parse(request.prompt)),
        negative_prompt=None if negative is None else plain(parse(negative)),
    )


def _unweighted(request: ImageRequest) -> tuple[str, ...]:
    """A warning if a text has weights: T5's states mean nothing when they are scaled."""
    texts = (request.prompt, request.negative_prompt or "")
    if all(is_plain(parse(text)) for text in texts):
        return ()
    return (f"prompt weights were not used: {request.model} has none",)
