"""UNets of Stable Diffusion's shapes whose random weights still denoise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pipelines.demo.weights import PIN, conv_bias, pinned_std, split_signs

#: Latent channels that the sampler works on; an inpainting UNet reads a mask and as many of the masked picture too.
LATENTS = 4
INPAINT_CHANNELS = 2 * LATENTS + 1
#: Of the first level's channels these carry the input and the pins through to the output; the others are the network.
CARRIED = 2 * LATENTS

#: Cross attention as initialised is too quiet for a prompt to show.
PROMPT_GAIN = 4.0
#: So are SDXL's sizes and pooled prompt, and a distilled UNet's guidance.
EXTRA_GAIN = 4.0


@dataclass(frozen=True, kw_only=True)
class Wiring:
    """eps = sharp v - blurred blur(v) + voice network, where v is the input less ``known`` times the masked picture."""

    #: What is broad in the noise (factor sharp - blurred) is removed slower than grain (factor sharp) and grows into
    #: the picture. With sharp above about 1.4 multistep samplers of few steps amplify grain instead.
    sharp: float = 1.25
    blurred: float = 0.5
    #: How much of the network is heard; at 0.1 prompts push guided pictures to pure white or green.
    voice: float = 0.03
    #: How much of the masked picture is heard, in an inpainting UNet; at 0.6 it comes through as bright as it was.
    known: float = 0.0
    #: The guidance at which pictures of many prompts are grey on average.
    guidance: float = 7.5


def sd15_unet(wiring: Wiring, in_channels: int = LATENTS, text_width: int = 32, **options: Any) -> nn.Module:
    """SD1.5's four levels of two layers, narrow, with one attention head per block so that 512 x 512 stays bearable.

    ``options`` go to ``UNet2DConditionModel`` (time_cond_proj_dim of a distilled one).
    """
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel(
        sample_size=64,
        in_channels=in_channels,
        out_channels=LATENTS,
        layers_per_block=2,
        norm_num_groups=1,
        block_out_channels=(16, 32, 32, 32),
        cross_attention_dim=text_width,
        # Called so for historical reasons: it is the number of heads.
        attention_head_dim=1,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        **options,
    )
    return denoising(unet, wiring)


def sdxl_unet(
    wiring: Wiring, in_channels: int = LATENTS, text_width: int = 80, pooled_width: int = 48, sample_size: int = 128
) -> nn.Module:
    """SDXL's three levels, the first without attention, conditioned on sizes and on a pooled prompt too."""
    from diffusers import UNet2DConditionModel

    numbers, width = 6, 32
    unet = UNet2DConditionModel(
        sample_size=sample_size,
        in_channels=in_channels,
        out_channels=LATENTS,
        layers_per_block=2,
        norm_num_groups=1,
        block_out_channels=(16, 32, 32),
        cross_attention_dim=text_width,
        attention_head_dim=1,
        transformer_layers_per_block=(1, 2, 2),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=width,
        projection_class_embeddings_input_dim=pooled_width + numbers * width,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    )
    return denoising(unet, wiring)


def denoising(unet: Any, wiring: Wiring) -> nn.Module:
    """Wires the first skip connection to the output, so that the prediction is mostly the input itself.

    A plain random UNet never removes noise: its pictures saturate and hide what prompt and seed do.
    """
    for name, parameter in unet.named_parameters():
        if "attn2.to_v" in name or "attn2.to_out.0.weight" in name:
            parameter.mul_(PROMPT_GAIN)
        sized = unet.config.addition_embed_type is not None and "time_emb_proj" in name
        if sized or name.startswith("add_embedding") or "cond_proj" in name:
            parameter.mul_(EXTRA_GAIN)
    width = unet.conv_in.out_channels
    carried = [*range(CARRIED), width - 2, width - 1]
    _wire_in(unet.conv_in, wiring)
    _wire_last_block(unet.up_blocks[-1], width, carried)
    _wire_out(unet.conv_out, width, carried, wiring)
    module: nn.Module = unet
    return module.eval()


def _wire_in(conv: nn.Conv2d, wiring: Wiring) -> None:
    conv.weight[:CARRIED] = 0
    conv_bias(conv)[:CARRIED] = 0
    split_signs(conv, LATENTS, 1)
    if conv.in_channels == INPAINT_CHANNELS:
        for channel in range(LATENTS):
            masked_picture = LATENTS + 1 + channel
            conv.weight[channel, masked_picture, 1, 1] = -wiring.known
            conv.weight[channel + LATENTS, masked_picture, 1, 1] = wiring.known


def _wire_last_block(block: Any, width: int, carried: list[int]) -> None:
    """The last residual block reads the first skip and hands its carried channels on; nothing else is added to them."""
    block_in, block_out = block.resnets[-1].conv_shortcut, block.resnets[-1].conv2
    layers = [block_in, block_out, *(attention.proj_out for attention in getattr(block, "attentions", [])[-1:])]
    for layer in layers:
        layer.weight[carried] = 0
        layer.bias[carried] = 0
    for channel in range(CARRIED):
        # The block's input is the level below (width channels) and then the skip.
        block_in.weight[channel, width + channel, 0, 0] = 1
    block_in.bias[width - 2], block_in.bias[width - 1] = PIN, -PIN


def _wire_out(conv: nn.Conv2d, width: int, carried: list[int], wiring: Wiring) -> None:
    std = pinned_std(width)
    # Beside the pins everything is small after GroupNorm, and there silu(v) is about v / 2.
    conv.weight.mul_(2 * std * wiring.voice)
    conv.weight[:, carried] = 0
    conv_bias(conv).zero_()
    kernel = torch.full((3, 3), -wiring.blurred / 9)
    kernel[1, 1] += wiring.sharp
    for channel in range(LATENTS):
        conv.weight[channel, channel] = std * kernel
        conv.weight[channel, channel + LATENTS] = -std * kernel


def centre(unet: Any, wiring: Wiring, prompts: Mapping[str, Any], empty: Mapping[str, Any]) -> None:
    """Sets the output's bias so that colours are balanced; without it every prompt draws one and the same colour.

    prompts, empty: what the UNet is called with beside sample and timestep, for the same number of entries.
    """
    count = len(prompts["encoder_hidden_states"])
    noise = torch.randn(count, unet.config.in_channels, 16, 16)
    noise -= noise.mean((2, 3), keepdim=True)
    timesteps = torch.linspace(0, 999, count)
    with_prompt, without = (
        unet(noise, timesteps, **condition).sample.mean((0, 2, 3)) for condition in (prompts, empty)
    )
    bias = without + wiring.guidance * (with_prompt - without)
    # Rounded: the last bits of a forward depend on the machine, and the file should not.
    conv_bias(unet.conv_out).copy_(-bias.round(decimals=2))
