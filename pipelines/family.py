"""What a diffusers family gives; ``pipelines.diffusion`` does everything else."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from pipelines.base import LaneKey, Pipeline
from pipelines.lora_layers import LayerNames
from pipelines.prompt import Embedding, Reading, TextEncoder, Wording
from pipelines.request import ImageRequest
from pipelines.rows import Encoded
from pipelines.step import Denoiser


class Family(Pipeline):
    """Networks, and how texts and pictures become what they take."""

    #: Axis of a batch of latents along which channels lie.
    channel_axis = 1

    @abstractmethod
    def lane_shape(self, request: ImageRequest) -> tuple[int, ...]:
        """Shape of one row's latents as the denoiser takes them."""

    @abstractmethod
    def latent_shape(self, request: ImageRequest) -> tuple[int, int, int]:
        """(channels, height, width) of the VAE's latents; what the first draws are shaped like."""

    @abstractmethod
    def wordings(self, request: ImageRequest, reading: Reading) -> list[Wording]:
        """The texts that the request must have embeddings of."""

    @abstractmethod
    def read_texts(self, wordings: Sequence[Wording], clip_skip: int) -> list[Embedding]:
        """Texts through the text encoders, in order; all are of this clip_skip."""

    @abstractmethod
    def condition(self, request: ImageRequest, reading: Reading, embeddings: Mapping[Wording, Embedding]) -> Encoded:
        """What the request is conditioned on; ``embeddings`` holds its ``wordings``."""

    @property
    @abstractmethod
    def encoders(self) -> tuple[TextEncoder, ...]:
        """The text encoders, whose layers LoRAs change."""

    @abstractmethod
    def denoiser(self, lane: LaneKey) -> Denoiser:
        """One forward for rows of a lane."""

    @property
    @abstractmethod
    def network(self) -> Any:
        """The denoiser's module, whose layers LoRAs change."""

    @abstractmethod
    def original_layers(self) -> LayerNames:
        """The original implementation's names of the denoiser's layers; see ``LayerNames``."""

    def pack(self, latents: Tensor) -> Tensor:
        """(channels, height, width) of the VAE's latents -> lane shape."""
        return latents

    def unpack(self, latents: Tensor, lane: LaneKey) -> Tensor:
        """(rows, *lane shape) -> (rows, channels, height, width) of the VAE's latents."""
        return latents

    @abstractmethod
    def pack_mask(self, mask: Tensor) -> Tensor:
        """(1, height, width) in pixels -> what broadcasts against a row's latents."""

    @abstractmethod
    def extra_channels(self, mask: Tensor, masked: Tensor) -> Tensor:
        """(1, height, width) mask in pixels, (channels, …) latents of the masked picture -> further input channels."""
