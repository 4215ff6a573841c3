"""What a GPU gains, on networks of SD1.5's published size: ``python -m bench.gpu > bench/results/DATE-GPU.txt``.

Their weights are random, which takes as long as any others. Prints what ``bench.engine`` and ``bench.options`` print,
at 512 px.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch

from bench import engine, options
from pipelines import demo
from pipelines.quiet import quiet_libraries

#: The published configurations.
UNET: dict[str, Any] = {
    "sample_size": 64,
    "layers_per_block": 2,
    "block_out_channels": (320, 640, 1280, 1280),
    "attention_head_dim": 8,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
}
VAE: dict[str, Any] = {
    "sample_size": 512,
    "latent_channels": 4,
    "layers_per_block": 2,
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
}


def write_checkpoint(folder: Path, *, full_size: bool) -> Path:
    """The demo checkpoint, with denoiser and VAE of the published size; 2 GB in 16 bits."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig

    checkpoint = demo.ensure("sd15", folder)
    if full_size:
        width = CLIPTextConfig.from_pretrained(str(checkpoint / "text_encoder")).hidden_size
        torch.manual_seed(0)
        unet = UNet2DConditionModel(**UNET, cross_attention_dim=width).to(torch.float16)
        unet.save_pretrained(str(checkpoint / "unet"))
        AutoencoderKL(**VAE).to(torch.float16).save_pretrained(str(checkpoint / "vae"))
    return checkpoint


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--try", dest="trial", action="store_true", help="on the CPU, small networks, 64 px")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each side per comparison")
    given = parser.parse_args()
    quiet_libraries()
    device, side = ("cpu", 64) if given.trial else ("cuda", 512)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = write_checkpoint(Path(folder), full_size=not given.trial)
        engine.measure(checkpoint, given.rounds, device=device, sides=(side,), cost_side=side)
        print("\nLoRAs")
        options.measure(checkpoint, device=device, sides=(side,))


if __name__ == "__main__":
    main()
