"""A UNet of Stable Diffusion's shape whose random weights still denoise."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from pipelines.demo.weights import PIN, conv_bias, pinned_std, split_signs

#: Latent channels that the sampler works on; an inpainting UNet reads five more.
LATENTS = 4
#: Of the first level's channels these carry the input and the pins through to the output; the others are the network.
CARRIED = 2 * LATENTS

#: eps = SHARP x - BLURRED blur(x) + VOICE network: what is broad in the noise (factor SHARP - BLURRED) is removed
#: slower than grain (factor SHARP) and grows into the picture. With SHARP above about 1.4 multistep samplers of few
#: steps amplify grain instead.
SHARP, BLURRED = 1.25, 0.5
#: How much of the network is heard; at 0.1 prompts push pictures to pure white or green.
VOICE = 0.03
#: The guidance at which pictures of many prompts are grey on average.
USUAL_GUIDANCE = 7.5
#: Cross attention as initialised is too quiet for a prompt to show.
PROMPT_GAIN = 4.0


def sd15_unet(in_channels: int = LATENTS, text_width: int = 32) -> nn.Module:
    """SD1.5's four levels of two layers, narrow, with one attention head per block so that 512 x 512 stays bearable."""
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
    )
    return denoising(unet)


def denoising(unet: Any) -> nn.Module:
    """Wires the first skip connection to the output, so that the prediction is mostly the input itself.

    A plain random UNet never removes noise: its pictures saturate and hide what prompt and seed do.
    """
    for name, parameter in unet.named_parameters():
        if "attn2.to_v" in name or "attn2.to_out.0.weight" in name:
            parameter.mul_(PROMPT_GAIN)
    width = unet.conv_in.out_channels
    carried = [*range(CARRIED), width - 2, width - 1]
    _wire_in(unet.conv_in)
    _wire_last_block(unet.up_blocks[-1], width, carried)
    _wire_out(unet.conv_out, width, carried)
    module: nn.Module = unet
    return module.eval()


def _wire_in(conv: nn.Conv2d) -> None:
    conv.weight[:CARRIED] = 0
    conv_bias(conv)[:CARRIED] = 0
    split_signs(conv, LATENTS, 1)


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


def _wire_out(conv: nn.Conv2d, width: int, carried: list[int]) -> None:
    std = pinned_std(width)
    # Beside the pins everything is small after GroupNorm, and there silu(v) is about v / 2.
    conv.weight.mul_(2 * std * VOICE)
    conv.weight[:, carried] = 0
    conv_bias(conv).zero_()
    kernel = torch.full((3, 3), -BLURRED / 9)
    kernel[1, 1] += SHARP
    for channel in range(LATENTS):
        conv.weight[channel, channel] = std * kernel
        conv.weight[channel, channel + LATENTS] = -std * kernel


def centre(unet: Any, prompts: torch.Tensor, empty: torch.Tensor) -> None:
    """Sets the output's bias so that colours are balanced; without it every prompt draws one and the same colour.

    prompts: (prompt, token, channel), empty: (1, token, channel), both from the text encoder.
    """
    noise = torch.randn(len(prompts), unet.config.in_channels, 16, 16)
    noise -= noise.mean((2, 3), keepdim=True)
    timesteps = torch.linspace(0, 999, len(prompts))
    with_prompt, without = (
        unet(noise, timesteps, encoder_hidden_states=text).sample.mean((0, 2, 3))
        for text in (prompts, empty.expand_as(prompts))
    )
    bias = without + USUAL_GUIDANCE * (with_prompt - without)
    # Rounded: the last bits of a forward depend on the machine, and the file should not.
    conv_bias(unet.conv_out).copy_(-bias.round(decimals=2))
