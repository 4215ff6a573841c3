"""IP-Adapters and image encoders for the demo UNets: in the real files' layout, and pictures show in what is drawn."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipelines.auxiliary import AuxiliaryKind
from pipelines.demo.unet import Wiring, sd15_unet, sdxl_unet
from pipelines.demo.weights import save_quietly, seeded
from pipelines.ip_adapter import IP_ADAPTERS

SEED = 3
#: Pixels on a side of what the encoders see.
SIDE = 32
#: Encoder -> width of its states and of its embeddings; as with the real ones, no two are equal.
ENCODERS = {"vit-h": (32, 24), "vit-g": (48, 40)}
#: Family -> its UNet, and how much louder than as drawn pictures must be to show in it.
UNETS: dict[str, tuple[Callable[[Wiring], nn.Module], float]] = {"sd15": (sd15_unet, 4.0), "sdxl": (sdxl_unet, 24.0)}
#: Of adapters that read places: width of the projection, of its one attention head, its blocks, the tokens it makes.
HIDDEN, HEAD, DEPTH, TOKENS = 32, 64, 4, 16
#: Tokens of the others.
FEW_TOKENS = 4


def build(folder: Path) -> None:
    """All public ids and their encoders, in the folders of their kinds."""
    from safetensors.torch import save_file

    with seeded(SEED):
        for name, (hidden, projected) in ENCODERS.items():
            save_quietly(image_encoder(hidden, projected), folder / AuxiliaryKind.IMAGE_ENCODER / name)
        layers = {family: cross_attentions(unet(Wiring())) for family, (unet, _) in UNETS.items()}
        adapters = folder / AuxiliaryKind.IP_ADAPTER
        adapters.mkdir()
        for name, facts in IP_ADAPTERS.items():
            hidden, projected = ENCODERS[facts.encoder]
            width = layers[facts.family][0][1]
            project = _plus(hidden, width) if "plus" in name else _plain(projected, width)
            attended = _layers(layers[facts.family], gain=UNETS[facts.family][1])
            save_file({**project, **attended}, adapters / f"{name}.safetensors")


def image_encoder(hidden: int, projected: int) -> Any:
    """A ``CLIPVisionModelWithProjection`` that tells pictures apart."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    config = CLIPVisionConfig(
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        projection_dim=projected,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=SIDE,
        patch_size=8,
    )
    model = CLIPVisionModelWithProjection(config).eval()
    for parameter in model.parameters():
        if parameter.ndim >= 2:
            parameter.normal_(0, parameter[0].numel() ** -0.5)
    return model


def cross_attentions(unet: Any) -> list[tuple[int, int]]:
    """(outputs, width of texts) of each one's keys, in diffusers' order."""
    names = [name for name in unet.attn_processors if ".attn2." in name]
    return [tuple(unet.get_submodule(name.removesuffix(".processor")).to_k.weight.shape) for name in names]


def _linear(outputs: int, inputs: int, gain: float = 1.0) -> Tensor:
    return torch.randn(outputs, inputs) * (gain / math.sqrt(inputs))


def _norm(name: str, width: int) -> dict[str, Tensor]:
    return {f"{name}.weight": torch.ones(width), f"{name}.bias": torch.zeros(width)}


def _plain(inputs: int, width: int) -> dict[str, Tensor]:
    rows = FEW_TOKENS * width
    return {
        "image_proj.proj.weight": _linear(rows, inputs),
        "image_proj.proj.bias": torch.zeros(rows),
        **_norm("image_proj.norm", width),
    }


def _plus(inputs: int, width: int) -> dict[str, Tensor]:
    tensors = {
        "image_proj.latents": torch.randn(1, TOKENS, HIDDEN) / math.sqrt(HIDDEN),
        "image_proj.proj_in.weight": _linear(HIDDEN, inputs),
        "image_proj.proj_in.bias": torch.zeros(HIDDEN),
        "image_proj.proj_out.weight": _linear(width, HIDDEN),
        "image_proj.proj_out.bias": torch.zeros(width),
        **_norm("image_proj.norm_out", width),
    }
    for block in range(DEPTH):
        place = f"image_proj.layers.{block}"
        for norm in ("0.norm1", "0.norm2", "1.0"):
            tensors |= _norm(f"{place}.{norm}", HIDDEN)
        tensors |= {
            f"{place}.0.to_q.weight": _linear(HEAD, HIDDEN),
            f"{place}.0.to_kv.weight": _linear(2 * HEAD, HIDDEN),
            f"{place}.0.to_out.weight": _linear(HIDDEN, HEAD),
            f"{place}.1.1.weight": _linear(4 * HIDDEN, HIDDEN),
            f"{place}.1.3.weight": _linear(HIDDEN, 4 * HIDDEN),
        }
    return tensors


def _layers(layers: list[tuple[int, int]], *, gain: float) -> dict[str, Tensor]:
    return {
        f"ip_adapter.{2 * index + 1}.to_{part}_ip.weight": _linear(outputs, inputs, gain)
        for index, (outputs, inputs) in enumerate(layers)
        for part in ("k", "v")
    }
