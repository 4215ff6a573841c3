"""Stable Diffusion 1.5: a UNet over 4-channel latents, conditioned on CLIP's last hidden state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor

from pipelines.checkpoint import Checkpoint
from pipelines.device import pick_dtype
from pipelines.diffusion import Conditioning, DiffusionPipeline
from pipelines.errors import Error
from pipelines.model import ModelSpec
from pipelines.prompt import ClipEncoder, EmbeddingCache, encode_texts
from pipelines.request import ImageRequest


class StableDiffusion15(DiffusionPipeline):
    """Text to image as diffusers' ``StableDiffusionPipeline`` draws it (Rombach et al. 2022)."""

    def __init__(self, *, unet: Any, vae: Any, clip: ClipEncoder, **shared: Any) -> None:
        super().__init__(**shared)
        self.unet = unet
        self._vae = vae
        self._clip = clip
        self.cache = EmbeddingCache()
        #: Pixels per latent, on a side.
        self._factor = 2 ** (len(vae.config.block_out_channels) - 1)

    @classmethod
    def load(cls, spec: ModelSpec, device: torch.device, slots: int) -> Self:
        """From a diffusers folder; BrokenCheckpoint says which file is wrong and how."""
        from diffusers import AutoencoderKL, UNet2DConditionModel
        from transformers import CLIPTextModel, CLIPTokenizer

        checkpoint = Checkpoint(spec.id, spec.folder, dtype=pick_dtype(spec.dtype, device), device=device)
        checkpoint.check_class(("StableDiffusionPipeline",))
        unet = checkpoint.load_module("unet", UNet2DConditionModel)
        checkpoint.check_config(unet, "unet", "in_channels", 4)
        return cls(
            unet=unet,
            vae=checkpoint.load_module("vae", AutoencoderKL),
            clip=ClipEncoder(
                checkpoint.load_tokenizer("tokenizer", CLIPTokenizer),
                checkpoint.load_module("text_encoder", CLIPTextModel),
            ),
            scheduler_config=checkpoint.scheduler_config(),
            scheduler=spec.scheduler,
            dtype=checkpoint.dtype,
            device=device,
            slots=slots,
        )

    def latent_shape(self, request: ImageRequest) -> tuple[int, ...]:
        """(4, height / 8, width / 8)."""
        return (4, request.height // self._factor, request.width // self._factor)

    def encode(
        self, requests: Sequence[ImageRequest]
    ) -> list[tuple[Conditioning, Conditioning | None, tuple[str, ...]] | Error]:
        """See ``DiffusionPipeline.encode``."""
        shared = self._embed([one for one in requests if not one.reproducible], alone=False)
        alone = self._embed([one for one in requests if one.reproducible], alone=True)
        encoded: list[tuple[Conditioning, Conditioning | None, tuple[str, ...]] | Error] = []
        for request in requests:
            embeddings = alone if request.reproducible else shared
            positive = {"text": embeddings[request.prompt]}
            negative = {"text": embeddings[request.negative_prompt or ""]} if request.guidance > 1 else None
            encoded.append((positive, negative, self._cuts(request)))
        return encoded

    def _embed(self, requests: Sequence[ImageRequest], *, alone: bool) -> dict[str, Tensor]:
        texts = [one.prompt for one in requests]
        texts += [one.negative_prompt or "" for one in requests if one.guidance > 1]
        return encode_texts(texts, self._clip, self.cache, alone=alone)

    def _cuts(self, request: ImageRequest) -> tuple[str, ...]:
        most = self._clip.length - 2
        return tuple(
            f"{name} was cut to its first {most} tokens"
            for name, text in (("prompt", request.prompt), ("negative_prompt", request.negative_prompt or ""))
            if self._clip.is_cut(text)
        )

    def denoiser(self, sample: Tensor, timestep: Tensor, conditioning: Conditioning) -> Tensor:
        """The UNet."""
        out: Tensor = self.unet(sample, timestep, encoder_hidden_states=conditioning["text"], return_dict=False)[0]
        return out

    def decode(self, latents: Tensor) -> Tensor:
        """The VAE's decoder."""
        scaled = (latents / self._vae.config.scaling_factor).to(self._vae.dtype)
        image: Tensor = self._vae.decode(scaled, return_dict=False)[0]
        return image
