"""What the UNet families share: 4-channel latents, an image VAE, and checkpoints of 4 or 9 input channels."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pipelines.base import LaneKey
from pipelines.checkpoint import Checkpoint
from pipelines.diffusion import DiffusionPipeline
from pipelines.draws import Kind
from pipelines.errors import BrokenCheckpoint
from pipelines.lora_layers import LayerNames, unet_originals
from pipelines.placement import Part
from pipelines.request import ImageRequest
from pipelines.step import Conditioning, Denoiser
from schedulers.table import SamplerTable

#: Input channels of a UNet -> how it inpaints.
KINDS = {4: Kind.BLEND, 9: Kind.CHANNELS}


def kind_of(unet: Any, checkpoint: Checkpoint) -> Kind:
    """From the UNet's input channels; BrokenCheckpoint for any other number than 4 or 9."""
    channels = unet.config.in_channels
    if channels not in KINDS:
        raise BrokenCheckpoint(f"model {checkpoint.name}: unet has in_channels {channels}, not 4 or 9")
    return KINDS[channels]


def guidance_embedding(scale: float, width: int) -> Tensor:
    """(width,) float32: the sinusoidal embedding of a guidance scale that LCM UNets take instead of a negative prompt.

    Luo et al. 2023 (arXiv 2310.04378); w = scale - 1, in thousandths as diffusers passes it.
    """
    half = width // 2
    frequencies = torch.exp(torch.arange(half, dtype=torch.float32) * -(math.log(10000.0) / (half - 1)))
    angles = torch.tensor(scale - 1.0) * 1000.0 * frequencies
    embedding = torch.cat((angles.sin(), angles.cos()))
    return torch.nn.functional.pad(embedding, (0, width % 2))


class UNetPipeline(DiffusionPipeline):
    """Base of SD1.5 and SDXL."""

    #: Whether the family's stock pipelines set ``steps_offset`` to 1 whatever the checkpoint says.
    repairs_offset = True

    def __init__(self, *, unet: Any, **shared: Any) -> None:
        super().__init__(**shared)
        self.unet = unet
        self.placement.add(Part.DENOISER, unet)
        #: Width of the guidance embedding of an LCM UNet; None for all others.
        self.guidance_width: int | None = unet.config.time_cond_proj_dim

    def latent_shape(self, request: ImageRequest) -> tuple[int, int, int]:
        """(4, height / 8, width / 8)."""
        return (4, request.height // self.factor, request.width // self.factor)

    def lane_shape(self, request: ImageRequest) -> tuple[int, ...]:
        """The VAE's own layout."""
        return self.latent_shape(request)

    def is_guided(self, request: ImageRequest) -> bool:
        """A second entry with the negative prompt is needed."""
        return request.guidance > 1 and self.guidance_width is None

    def guidance_condition(self, request: ImageRequest) -> dict[str, Tensor]:
        """What an LCM UNet is told of the guidance scale; nothing for others."""
        if self.guidance_width is None:
            return {}
        return {"guidance": guidance_embedding(request.guidance, self.guidance_width).to(self.device, self.dtype)}

    def table(self, request: ImageRequest) -> SamplerTable:
        """The sampler; a strength too small for one step draws one."""
        strength = None
        if request.image is not None:
            # int(n s) must not be 0, nor be rounded down to it.
            strength = min(1.0, max(request.strength, (1 + 1e-9) / request.steps))
        return self._compile(request, strength=strength, repair=self.repairs_offset)

    @abstractmethod
    def added_conditions(self, conditioning: Conditioning) -> Mapping[str, Tensor] | None:
        """The UNet's ``added_cond_kwargs``."""

    def denoiser(self, lane: LaneKey) -> Denoiser:
        """The UNet."""
        return self._forward

    @property
    def network(self) -> Any:
        """The UNet."""
        return self.unet

    def original_layers(self) -> LayerNames:
        """Stability's names, which kohya's SDXL files have."""
        return unet_originals(self.unet)

    def _forward(self, sample: Tensor, timestep: Tensor, conditioning: Conditioning) -> Tensor:
        out: Tensor = self.unet(
            sample,
            timestep,
            encoder_hidden_states=conditioning["text"],
            timestep_cond=conditioning.get("guidance"),
            added_cond_kwargs=self.added_conditions(conditioning),
            return_dict=False,
        )[0]
        return out

    def pack_mask(self, mask: Tensor) -> Tensor:
        """(1, height / 8, width / 8): the nearest pixel of each latent, as stock has it."""
        size = (mask.shape[-2] // self.factor, mask.shape[-1] // self.factor)
        return torch.nn.functional.interpolate(mask[None], size=size)[0]

    def extra_channels(self, mask: Tensor, masked: Tensor) -> Tensor:
        """(5, height / 8, width / 8): mask, then the masked picture's latents."""
        return torch.cat((self.pack_mask(mask), masked))
