"""A transformer of Flux's shape whose random weights still denoise."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from pipelines.demo.weights import pinned_std

#: Features of a token: 16 latent channels of 2 x 2 latents, channel first. The first three channels are the colours.
FEATURES = 64
PATCH = 4
COLOURS = 3 * PATCH
#: Channels of the hidden states; one attention head, so that 512 x 512 stays bearable.
WIDTH = 64
#: Of these the first carry the colours through to the output and the last two are pins; the others are the network.
#: A LayerNorm divides by the deviation over all, which the pins make nearly constant.
PIN = 24.0
CARRIED = [*range(COLOURS), WIDTH - 2, WIDTH - 1]

#: velocity = SHARP v - BLURRED mean(v over the token) + VOICE network, v the input less KNOWN times the masked picture.
SHARP, BLURRED, VOICE = 1.2, 0.5, 0.15
#: Following dx/dsigma = x - k m from sigma 1 to 0 leaves k (1 - 1/e) m.
KNOWN = 1.58
#: As initialised, neither the prompt's pooled embedding nor guidance show.
TEMB_GAIN = 6.0
#: Nor do the tokens of the prompt, of which every place of the picture reads the mean.
TEXT_GAIN = 4.0


def flux_transformer(
    *, guidance_embeds: bool, in_channels: int = FEATURES, text_width: int = 32, pooled_width: int = 32
) -> nn.Module:
    """Two blocks of both kinds; ``in_channels`` 384 reads the masked picture (64) and the mask (256) too."""
    from diffusers import FluxTransformer2DModel

    transformer: Any = FluxTransformer2DModel(
        patch_size=1,
        in_channels=in_channels,
        out_channels=FEATURES,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=WIDTH,
        num_attention_heads=1,
        joint_attention_dim=text_width,
        pooled_projection_dim=pooled_width,
        guidance_embeds=guidance_embeds,
        axes_dims_rope=(8, 28, 28),
    ).eval()
    for name, parameter in transformer.named_parameters():
        if name.startswith("time_text_embed") and "linear_2.weight" in name:
            parameter.mul_(TEMB_GAIN)
        if name == "context_embedder.weight" or name.endswith("add_v_proj.weight"):
            parameter.mul_(TEXT_GAIN)
    _wire_in(transformer)
    for block in transformer.transformer_blocks:
        _open_gates(block.norm1.linear)
        _open_gates(block.norm1_context.linear)
        for layer in (block.attn.to_out[0], block.attn.to_add_out, block.ff.net[2], block.ff_context.net[2]):
            _add_nothing_to_carried(layer)
    for block in transformer.single_transformer_blocks:
        _open_gates(block.norm.linear)
        _add_nothing_to_carried(block.proj_out)
    _wire_out(transformer)
    module: nn.Module = transformer
    return module


def _wire_in(transformer: Any) -> None:
    for layer in (transformer.x_embedder, transformer.context_embedder):
        _add_nothing_to_carried(layer)
        layer.bias[WIDTH - 2], layer.bias[WIDTH - 1] = PIN, -PIN
    weight = transformer.x_embedder.weight
    for feature in range(COLOURS):
        weight[feature, feature] = 1
        if weight.shape[1] > FEATURES:
            weight[feature, FEATURES + feature] = -KNOWN


def _open_gates(modulation: nn.Linear) -> None:
    """shift, scale, gate: as initialised the gates let nearly nothing of a block through."""
    for gate in modulation.bias.view(-1, 3, WIDTH)[:, 2]:
        gate += 1


def _add_nothing_to_carried(layer: nn.Linear) -> None:
    layer.weight[CARRIED] = 0
    layer.bias[CARRIED] = 0


def _wire_out(transformer: Any) -> None:
    modulation = transformer.norm_out.linear
    for part in (modulation.weight.view(2, WIDTH, WIDTH), modulation.bias.view(2, WIDTH)):
        part[:, CARRIED] = 0
    std = pinned_std(WIDTH, PIN)
    out = transformer.proj_out
    out.weight.mul_(std * VOICE)
    out.weight[:, CARRIED] = 0
    out.bias.zero_()
    # All latents of a token go one way: otherwise a picture is grain.
    for channel in range(FEATURES // PATCH):
        rows = slice(channel * PATCH, (channel + 1) * PATCH)
        out.weight[rows] = out.weight[rows].mean(0) * PATCH**0.5
    for channel in range(3):
        part = slice(channel * PATCH, (channel + 1) * PATCH)
        out.weight[part, part] = std * (SHARP * torch.eye(PATCH) - BLURRED / PATCH)


def centre(transformer: Any, **condition: Any) -> None:
    """Sets the output's bias so that colours are balanced; without it every prompt draws one and the same colour.

    condition: what the transformer is called with beside hidden_states, timestep and img_ids, for some prompts.
    """
    count = len(condition["encoder_hidden_states"])
    side = 8
    tokens = torch.randn(count, side * side, transformer.config.in_channels)
    tokens -= tokens.mean(1, keepdim=True)
    places = torch.zeros(side, side, 3)
    places[..., 1] += torch.arange(side)[:, None]
    places[..., 2] += torch.arange(side)[None, :]
    out = transformer(
        hidden_states=tokens, timestep=torch.linspace(0, 1, count), img_ids=places.view(-1, 3), **condition
    ).sample
    # Rounded: the last bits of a forward depend on the machine, and the file should not.
    transformer.proj_out.bias.copy_(-out.mean((0, 1)).round(decimals=2))
