"""A real AutoencoderKL whose weights make it an exact 8 x 8 box filter: a picture tells where its latents came from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipelines.demo.weights import PIN, conv_bias, pinned_std, silence, split_signs

WIDTH = 8
#: Log variance of the posterior: a sample of it is its mean.
SURE = -30.0
#: A sample of it shows who drew it, when, and with which seed.
UNSURE = -2.0


def box_vae(latents: int = 4, **options: Any) -> nn.Module:
    """decode(encode(x)) is x averaged over 8 x 8 pixels; latents 0..2 are red, green, blue times 1 / scaling_factor.

    ``options`` go to ``AutoencoderKL`` (scaling_factor, shift_factor, use_quant_conv …).
    """
    from diffusers import AutoencoderKL

    vae: Any = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=latents,
        block_out_channels=(WIDTH,) * 4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        norm_num_groups=1,
        **{"sample_size": 512, **options},
    ).eval()
    scale, shift = vae.config.scaling_factor, vae.config.shift_factor or 0.0
    _make_transparent(vae)
    _wire_encoder(vae.encoder, latents, scale, shift)
    _wire_decoder(vae.decoder, scale, shift)
    for conv in (vae.quant_conv, vae.post_quant_conv):
        if conv is not None:
            silence(conv)
            for channel in range(conv.weight.shape[0]):
                conv.weight[channel, channel, 0, 0] = 1
    module: nn.Module = vae
    return module


def noisy(folder: Path, log_variance: float = UNSURE) -> None:
    """Rewrites a demo checkpoint's VAE, so that its posterior has a spread and a wrong draw from it is seen."""
    from safetensors.torch import load_file, save_file

    file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    # Quantised latents or not, the second half of the encoder's output is the log variance.
    bias = weights["encoder.conv_out.bias"]
    bias[len(bias) // 2 :] = log_variance
    save_file(weights, file, metadata={"format": "pt"})


def swapped(checkpoint: Path, folder: Path) -> None:
    """Writes a VAE as a folder of its own: that of a demo checkpoint, with red and blue changing places.

    Both ways, and its latents are twice as small: what only encodes or only decodes with it is seen.
    """
    from diffusers import AutoencoderKL

    vae: Any = AutoencoderKL.from_pretrained(checkpoint, subfolder="vae", local_files_only=True)
    vae.register_to_config(scaling_factor=2 * vae.config.scaling_factor)
    for weight, channels in ((vae.encoder.conv_in.weight, 1), (vae.decoder.conv_out.weight, 0)):
        order = list(range(weight.shape[channels]))
        order[0], order[2] = order[2], order[0]
        weight.data = weight.data.index_select(channels, torch.tensor(order)).contiguous()
    vae.save_pretrained(folder)


def _make_transparent(vae: nn.Module) -> None:
    """Every residual and attention block adds nothing, every resampling is a plain mean or a plain copy."""
    for name, layer in vae.named_modules():
        last = name.rsplit(".", 1)[-1]
        if last == "conv2" or name.endswith("to_out.0"):
            silence(layer)
        elif last == "conv":
            silence(layer)
            _resample(layer, downwards="downsamplers" in name)


def _resample(conv: Any, *, downwards: bool) -> None:
    for channel in range(WIDTH):
        if downwards:
            conv.weight[channel, channel, :2, :2] = 0.25
        else:
            conv.weight[channel, channel, 1, 1] = 1


def _wire_encoder(encoder: Any, latents: int, scale: float, shift: float) -> None:
    _wire_in(encoder.conv_in, 1)
    _wire_out(encoder.conv_out, 1 / scale)
    conv_bias(encoder.conv_out)[:latents] = shift
    conv_bias(encoder.conv_out)[latents:] = SURE


def _wire_decoder(decoder: Any, scale: float, shift: float) -> None:
    _wire_in(decoder.conv_in, scale)
    _wire_out(decoder.conv_out, 1)
    conv_bias(decoder.conv_in)[:3] -= shift * scale
    conv_bias(decoder.conv_in)[3:6] += shift * scale


def _wire_in(conv: nn.Conv2d, gain: float) -> None:
    """v -> (+v, -v, +PIN, -PIN)."""
    silence(conv)
    split_signs(conv, 3, gain)
    conv_bias(conv)[6], conv_bias(conv)[7] = PIN, -PIN


def _wire_out(conv: nn.Conv2d, gain: float) -> None:
    """Undoes the GroupNorm and the SiLU that stand before the last convolution."""
    silence(conv)
    for channel in range(3):
        conv.weight[channel, channel, 1, 1] = gain * pinned_std(WIDTH)
        conv.weight[channel, channel + 3, 1, 1] = -gain * pinned_std(WIDTH)
