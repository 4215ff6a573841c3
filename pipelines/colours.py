"""What a VAE's latents look like without decoding them: for each VAE the affine map to red, green and blue."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pipelines.vae import Vae

#: Side of the picture that the map is learnt from; a latent of it is 8 x 8 pixels.
SIDE = 256
#: Of its cells per side, coarse to fine, and how strong each is: power falls with frequency, as in photographs.
OCTAVES = ((4, 1.0), (8, 0.6), (16, 0.35), (32, 0.2))
#: Share of the squared latents that is added to the normal equations: channels that say little stay small.
RIDGE = 1e-3


@dataclass(frozen=True, kw_only=True)
class Colours:
    """rgb = weights @ latent + bias, -1 .. 1."""

    #: (3, channels), in the denoiser's scale, on the device.
    weights: Tensor
    #: (3, 1, 1).
    bias: Tensor

    def show(self, latents: Tensor) -> Tensor:
        """(channels, height, width) -> uint8 (height, width, 3)."""
        rgb = torch.einsum("rc,chw->rhw", self.weights, latents) + self.bias
        levels = (rgb * 0.5 + 0.5).nan_to_num().clamp(0, 1).mul(255).round().to(torch.uint8)
        return levels.permute(1, 2, 0).contiguous()


def learn(vae: Vae, device: torch.device) -> Colours:
    """By least squares over the latents of one picture of coloured clouds: what the VAE itself makes of colours.

    A published matrix would hold for one VAE; this holds for whichever draws. It costs one encoding of a small picture.
    """
    picture = clouds(SIDE)
    latents = vae.scale(vae.encode(picture[None].to(device)).mean)
    points = latents.flatten(1).T.double().cpu()
    side = latents.shape[-1]
    wanted = torch.nn.functional.avg_pool2d(picture, SIDE // side).flatten(1).T.double()
    mean, colour = points.mean(dim=0), wanted.mean(dim=0)
    centred = points - mean
    squares = centred.T @ centred
    ridge = RIDGE * squares.diagonal().mean() * torch.eye(len(squares), dtype=squares.dtype)
    weights = torch.linalg.solve(squares + ridge, centred.T @ (wanted - colour)).T
    bias = colour - weights @ mean
    return Colours(weights=weights.float().to(device), bias=bias.float().view(3, 1, 1).to(device))


def clouds(side: int) -> Tensor:
    """(3, side, side), -1 .. 1: smooth random colours; always the same ones."""
    generator = torch.Generator("cpu").manual_seed(0)
    picture = torch.zeros(1, 3, side, side)
    for cells, strength in OCTAVES:
        # Light and dark in common, and colours of their own.
        grid = torch.randn(1, 1, cells, cells, generator=generator) + torch.randn(
            1, 3, cells, cells, generator=generator
        )
        picture += strength * torch.nn.functional.interpolate(grid, size=(side, side), mode="bicubic")
    return picture[0].mul(0.6).tanh()
