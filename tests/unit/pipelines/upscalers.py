"""Tiny upscalers in the published layouts, and what they should make of a picture, written from the papers alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import conv2d, interpolate, leaky_relu, pixel_shuffle, pixel_unshuffle, prelu

Tensors = dict[str, Tensor]
WIDTH, GROWTH, BLOCKS, CONVS = 8, 4, 2, 3


def rrdb(*, fold: int = 1, doublings: int = 2, blocks: int = BLOCKS, seed: int = 0) -> Tensors:
    """Real-ESRGAN's names."""
    draw = torch.Generator().manual_seed(seed)
    tensors: Tensors = {}

    def conv(name: str, inputs: int, outputs: int) -> None:
        tensors[f"{name}.weight"] = torch.randn(outputs, inputs, 3, 3, generator=draw) * (1.5 / (inputs * 9) ** 0.5)
        tensors[f"{name}.bias"] = torch.randn(outputs, generator=draw) * 0.05

    conv("conv_first", 3 * fold**2, WIDTH)
    for block in range(blocks):
        for part in (1, 2, 3):
            for number in range(1, 6):
                conv(f"body.{block}.rdb{part}.conv{number}", WIDTH + (number - 1) * GROWTH, GROWTH)
            conv(f"body.{block}.rdb{part}.conv5", WIDTH + 4 * GROWTH, WIDTH)
    for name in ("conv_body", *(f"conv_up{number + 1}" for number in range(doublings)), "conv_hr"):
        conv(name, WIDTH, WIDTH)
    conv("conv_last", WIDTH, 3)
    tensors["conv_last.bias"] += 0.4
    return tensors


def compact(*, factor: int = 4, seed: int = 0) -> Tensors:
    """realesr-general's names."""
    draw = torch.Generator().manual_seed(seed)
    sizes = [(3, WIDTH), *[(WIDTH, WIDTH)] * CONVS, (WIDTH, 3 * factor**2)]
    tensors: Tensors = {}
    for number, (inputs, outputs) in enumerate(sizes):
        weight = torch.randn(outputs, inputs, 3, 3, generator=draw) * (0.7 / (inputs * 9) ** 0.5)
        tensors[f"body.{2 * number}.weight"] = weight
        tensors[f"body.{2 * number}.bias"] = torch.zeros(outputs)
        if number <= CONVS:
            tensors[f"body.{2 * number + 1}.weight"] = torch.full((outputs,), 0.1)
    return tensors


def first_layout(tensors: Tensors) -> Tensors:
    """The names of the first ESRGAN."""
    ups = sum(key.startswith("conv_up") for key in tensors) // 2
    blocks = len({key.split(".")[1] for key in tensors if key.startswith("body.")})
    tail = {f"conv_up{number + 1}": f"model.{3 + 3 * number}" for number in range(ups)}
    names = {"conv_first": "model.0", "conv_body": f"model.1.sub.{blocks}", **tail}
    names |= {"conv_hr": f"model.{2 + 3 * ups}", "conv_last": f"model.{4 + 3 * ups}"}

    def renamed(key: str) -> str:
        layer, _, kind = key.rpartition(".")
        if layer.startswith("body."):
            _, block, part, conv = layer.split(".")
            return f"model.1.sub.{block}.{part.upper()}.{conv}.0.{kind}"
        return f"{names[layer]}.{kind}"

    return {renamed(key): tensor for key, tensor in tensors.items()}


def second_layout(tensors: Tensors) -> Tensors:
    """The names of the second ESRGAN."""
    names = {"conv_body": "trunk_conv", "conv_hr": "HRconv", "conv_up1": "upconv1", "conv_up2": "upconv2"}

    def renamed(key: str) -> str:
        layer, _, kind = key.rpartition(".")
        if layer.startswith("body."):
            _, block, part, conv = layer.split(".")
            return f"RRDB_trunk.{block}.{part.upper()}.{conv}.{kind}"
        return f"{names.get(layer, layer)}.{kind}"

    return {renamed(key): tensor for key, tensor in tensors.items()}


def wrapped(tensors: Tensors) -> Tensors:
    """As training scripts save them."""
    return {f"params_ema.{key}": tensor for key, tensor in tensors.items()}


def write(tensors: Tensors, folder: Path, name: str) -> Path:
    """A file of them."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.safetensors"
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path)
    return path


def run_rrdb(tensors: Tensors, x: Tensor, *, fold: int = 1, doublings: int = 2) -> Tensor:
    """Wang et al. 2018, figure 4, with nearest-neighbour upsampling."""

    def conv(name: str) -> Callable[[Tensor], Tensor]:
        return lambda y: conv2d(y, tensors[f"{name}.weight"], tensors[f"{name}.bias"], padding=1)

    def dense(name: str, y: Tensor) -> Tensor:
        seen = y
        for number in range(1, 5):
            seen = torch.cat((seen, leaky_relu(conv(f"{name}.conv{number}")(seen), 0.2)), dim=1)
        return y + conv(f"{name}.conv5")(seen) * 0.2

    y = conv("conv_first")(pixel_unshuffle(x, fold))
    first = y
    for block in sorted({int(key.split(".")[1]) for key in tensors if key.startswith("body.")}):
        z = y
        for part in (1, 2, 3):
            z = dense(f"body.{block}.rdb{part}", z)
        y = y + z * 0.2
    y = first + conv("conv_body")(y)
    for number in range(doublings):
        y = leaky_relu(conv(f"conv_up{number + 1}")(interpolate(y, scale_factor=2, mode="nearest")), 0.2)
    return conv("conv_last")(leaky_relu(conv("conv_hr")(y), 0.2))


def run_compact(tensors: Tensors, x: Tensor, *, factor: int = 4) -> Tensor:
    """Real-ESRGAN's small network."""
    y = x
    last = 2 * (CONVS + 1)
    for number in range(0, last + 1, 2):
        y = conv2d(y, tensors[f"body.{number}.weight"], tensors[f"body.{number}.bias"], padding=1)
        if number < last:
            y = prelu(y, tensors[f"body.{number + 1}.weight"])
    return pixel_shuffle(y, factor) + interpolate(x, scale_factor=factor, mode="nearest")
