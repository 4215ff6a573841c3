"""Which layers of a denoiser or of a text encoder the names in LoRA files mean."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from pipelines.errors import InvalidRequest
from pipelines.lora_file import LoraPair

#: Name in a file, with "_" for "." -> the layers it means; several: their outputs, one above the other.
LayerNames = Mapping[str, tuple[str, ...]]
Adaptable = nn.Linear | nn.Conv2d


class HalvesSwapped(tuple[str, ...]):
    """Of ``LayerNames``: a layer whose outputs' halves the file has the other way round."""


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


def encoder_names(layers: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """All names for the layers of a text encoder, whether it has an inner ``text_model`` or not.

    transformers 5 has none in ``CLIPTextModel`` and one in ``CLIPTextModelWithProjection``; files always have it.
    """
    names: dict[str, tuple[str, ...]] = {}
    for layer in layers:
        inner = layer.removeprefix("text_model.").replace(".", "_")
        # What diffusers before peft called CLIP's projections.
        older = re.sub(r"self_attn_(?:([qkv])|(out))_proj$", r"self_attn_to_\1\2", inner)
        for name in (inner, older):
            names[name] = names[f"text_model_{name}"] = (layer,)
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
    pairs: Mapping[str, LoraPair], layers: Mapping[str, Adaptable], names: LayerNames, *, name: str, model: str
) -> tuple[dict[str, LoraPair], list[str]]:
    """Pairs by layer, and what the model has no layer for.

    InvalidRequest, naming the LoRA, for pairs of another size: they were made for another kind of model.
    """
    fitted: dict[str, LoraPair] = {}
    unknown: list[str] = []
    for key, pair in pairs.items():
        targets = names.get(key, ())
        if not targets or any(target not in layers for target in targets):
            unknown.append(key)
            continue
        if isinstance(targets, HalvesSwapped):
            pair = replace(pair, up=pair.up.roll(len(pair.up) // 2, dims=0))
        found = _split(pair, [layers[target] for target in targets])
        if found is None:
            raise InvalidRequest(f"LoRA {name} is not for {model}: its {key[:100]} has another size", field="loras")
        fitted.update(zip(targets, found, strict=True))
    return fitted, unknown


def _split(pair: LoraPair, layers: Sequence[Adaptable]) -> list[LoraPair] | None:
    """The pair's outputs for each layer; None where it does not fit."""
    widths = [layer.weight.shape[0] for layer in layers]
    downs = [_shaped(pair, layer) for layer in layers]
    if sum(widths) != pair.up.shape[0] or any(down is None for down in downs):
        return None
    ups = pair.up.split(widths)
    return [LoraPair(down=down, up=up, scale=pair.scale) for down, up in zip(downs, ups, strict=True)]


def _shaped(pair: LoraPair, layer: Adaptable) -> Any:
    """``down`` in the axes of the layer's weight, (rank, inputs, …); None when it does not fit."""
    wanted = (pair.down.shape[0], *layer.weight.shape[1:])
    # Files hold a linear layer as a 1 x 1 convolution, and the other way round.
    kernel = pair.down.shape[2:] or (1, 1)
    fits = pair.down.shape[1] == wanted[1] and tuple(kernel) == (tuple(wanted[2:]) or (1, 1))
    return pair.down.reshape(wanted) if fits else None
