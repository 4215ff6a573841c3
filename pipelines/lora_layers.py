"""Which layers of a denoiser the names in LoRA files mean."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import nn

from pipelines.errors import InvalidRequest
from pipelines.lora_file import LoraFile, LoraPair

#: Name in a file, with "_" for "." -> the layers it means; several: their outputs, one above the other.
LayerNames = Mapping[str, tuple[str, ...]]
Adaptable = nn.Linear | nn.Conv2d

#: Parts of a residual block: diffusers' and the original's names.
_RESNET = {
    "conv1": "in_layers_2",
    "time_emb_proj": "emb_layers_1",
    "conv2": "out_layers_3",
    "conv_shortcut": "skip_connection",
}
#: Layers outside the blocks of a UNet.
_OUTSIDE = {
    "conv_in": "input_blocks_0_0",
    "time_embedding.linear_1": "time_embed_0",
    "time_embedding.linear_2": "time_embed_2",
    "add_embedding.linear_1": "label_emb_0_0",
    "add_embedding.linear_2": "label_emb_0_2",
    "conv_out": "out_2",
}
_BLOCK = re.compile(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)")
_MIDDLE = re.compile(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)")


def adaptable(network: nn.Module) -> dict[str, Adaptable]:
    """The layers that a LoRA can be laid over, by their names."""
    return {name: layer for name, layer in network.named_modules() if isinstance(layer, Adaptable)}


def layer_names(layers: Iterable[str], originals: LayerNames) -> dict[str, tuple[str, ...]]:
    """All names for the layers: diffusers' own, and the original implementation's."""
    names = {**originals}
    for layer in layers:
        names[layer.replace(".", "_")] = (layer,)
        # What diffusers before peft called it.
        names[layer.removesuffix(".0").replace(".", "_")] = (layer,)
    return names


def unet_originals(network: Any) -> dict[str, tuple[str, ...]]:
    """The names of Stability's implementation, which kohya's SDXL files have, for a UNet2DConditionModel's layers."""
    return {original: (layer,) for layer in adaptable(network) for original in _unet_original(network, layer)}


def _unet_original(network: Any, layer: str) -> Iterator[str]:
    if layer in _OUTSIDE:
        yield _OUTSIDE[layer]
    elif middle := _MIDDLE.fullmatch(layer):
        kind, index, rest = middle.groups()
        yield f"middle_block_{1 if kind == 'attentions' else 2 * int(index)}_{_within(kind, rest)}"
    elif block := _BLOCK.fullmatch(layer):
        side, number, kind, index, rest = block.groups()
        layers = network.config.layers_per_block
        # A level has one block per layer and one that changes the size; going up there is one layer more instead.
        first = int(number) * (layers + 1)
        if kind == "downsamplers":
            yield f"input_blocks_{first + layers + 1}_0_op"
        elif kind == "upsamplers":
            attends = hasattr(network.up_blocks[int(number)], "attentions")
            yield f"output_blocks_{first + layers}_{2 if attends else 1}_conv"
        else:
            place = (
                f"input_blocks_{1 + first + int(index)}" if side == "down" else f"output_blocks_{first + int(index)}"
            )
            yield f"{place}_{int(kind == 'attentions')}_{_within(kind, rest)}"


def _within(kind: str, rest: str) -> str:
    return _RESNET.get(rest, rest) if kind == "resnets" else rest.replace(".", "_")


def fit(
    file: LoraFile, layers: Mapping[str, Adaptable], names: LayerNames, *, name: str, model: str
) -> dict[str, LoraPair]:
    """The file's pairs by layer; InvalidRequest, naming the LoRA, when it was made for another kind of model."""
    if not file.pairs:
        raise InvalidRequest(f"LoRA {name} has nothing for the denoiser of {model}", field="loras")
    fitted: dict[str, LoraPair] = {}
    for key, pair in file.pairs.items():
        targets = names.get(key, ())
        if not all(target in layers for target in targets) or not targets:
            raise InvalidRequest(f"LoRA {name} is not for {model}, which has no layer {key[:100]}", field="loras")
        widths = [layers[target].weight.shape[0] for target in targets]
        parts = pair.up.split(widths) if sum(widths) == pair.up.shape[0] else ()
        for target, part in zip(targets, parts, strict=False):
            down = _shaped(pair, layers[target])
            if down is None:
                break
            fitted[target] = LoraPair(down=down, up=part, scale=pair.scale)
        else:
            if parts:
                continue
        raise InvalidRequest(f"LoRA {name} is not for {model}: its {key[:100]} has another size", field="loras")
    return fitted


def _shaped(pair: LoraPair, layer: Adaptable) -> Any:
    """``down`` in the axes of the layer's weight, (rank, inputs, …); None when it does not fit."""
    wanted = (pair.down.shape[0], *layer.weight.shape[1:])
    # Files hold a linear layer as a 1 x 1 convolution, and the other way round.
    kernel = pair.down.shape[2:] or (1, 1)
    fits = pair.down.shape[1] == wanted[1] and tuple(kernel) == (tuple(wanted[2:]) or (1, 1))
    return pair.down.reshape(wanted) if fits else None
