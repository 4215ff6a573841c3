"""Black Forest Labs' names of Flux' tensors, and diffusers' names for the same.

diffusers has such a converter too, but with the published widths built in. Names: black-forest-labs/flux, ``model.py``
and ``modules/layers.py``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from pipelines.lora_layers import HalvesSwapped

_BLOCK = re.compile(r"(double|single)_blocks\.(\d+)\.(.+)")
_BLOCKS = {"double": "transformer_blocks", "single": "single_transformer_blocks"}

#: Within a block, without ".weight" or ".bias". Several names: the tensor is theirs, one above the other.
_IN_BLOCK: dict[str, tuple[str, ...]] = {
    "img_mod.lin": ("norm1.linear",),
    "txt_mod.lin": ("norm1_context.linear",),
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "img_attn.proj": ("attn.to_out.0",),
    "txt_attn.proj": ("attn.to_add_out",),
    "img_mlp.0": ("ff.net.0.proj",),
    "img_mlp.2": ("ff.net.2",),
    "txt_mlp.0": ("ff_context.net.0.proj",),
    "txt_mlp.2": ("ff_context.net.2",),
    "img_attn.norm.query_norm": ("attn.norm_q",),
    "img_attn.norm.key_norm": ("attn.norm_k",),
    "txt_attn.norm.query_norm": ("attn.norm_added_q",),
    "txt_attn.norm.key_norm": ("attn.norm_added_k",),
    "modulation.lin": ("norm.linear",),
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
    "linear2": ("proj_out",),
    "norm.query_norm": ("attn.norm_q",),
    "norm.key_norm": ("attn.norm_k",),
}
_OUTSIDE = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
    "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
    "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
    "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
    "final_layer.linear": "proj_out",
    "final_layer.adaLN_modulation.1": "norm_out.linear",
}
#: Gives (shift, scale) there and (scale, shift) in diffusers.
_LAST_MODULATION = "final_layer.adaLN_modulation.1"


def originals(blocks: int, single_blocks: int) -> dict[str, tuple[str, ...]]:
    """LoRA files' names of Black Forest Labs' layers, with "_" for "." -> the layers that they were split into."""
    names: dict[str, tuple[str, ...]] = {key.replace(".", "_"): (layer,) for key, layer in _OUTSIDE.items()}
    names[_LAST_MODULATION.replace(".", "_")] = HalvesSwapped((_OUTSIDE[_LAST_MODULATION],))
    for kind, count in (("double", blocks), ("single", single_blocks)):
        for number in range(count):
            for key, layers in _IN_BLOCK.items():
                if key.startswith(("img", "txt")) is (kind == "double"):
                    name = f"{kind}_blocks_{number}_{key.replace('.', '_')}"
                    names[name] = tuple(f"{_BLOCKS[kind]}.{number}.{layer}" for layer in layers)
    return names


def to_diffusers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renamed and split for ``FluxTransformer2DModel``; names that are not Flux' are left out."""
    width = tensors["img_in.weight"].shape[0]
    return {name: part for key, tensor in tensors.items() for name, part in _renamed(key, tensor, width)}


def _renamed(key: str, tensor: Tensor, width: int) -> Iterator[tuple[str, Tensor]]:
    module, _, kind = key.rpartition(".")
    kind = "weight" if kind == "scale" else kind
    block = _BLOCK.fullmatch(module)
    if block is None:
        if module in _OUTSIDE:
            yield f"{_OUTSIDE[module]}.{kind}", _swapped(tensor) if module == _LAST_MODULATION else tensor
        return
    names = _IN_BLOCK.get(block[3], ())
    # Queries, keys and values are as wide as the model; what follows them in linear1 takes the rest.
    sizes = [width] * min(len(names), 3)
    rest = tensor.shape[0] - sum(sizes)
    parts = tensor.split([*sizes, rest] if len(names) == 4 else sizes) if len(names) > 1 else (tensor,)
    for name, part in zip(names, parts, strict=False):
        yield f"{_BLOCKS[block[1]]}.{block[2]}.{name}.{kind}", part


def _swapped(tensor: Tensor) -> Tensor:
    """(shift, scale), one above the other, to diffusers' (scale, shift)."""
    shift, scale = tensor.chunk(2)
    return torch.cat((scale, shift))
