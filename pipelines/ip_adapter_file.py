"""An IP-Adapter's file: what makes tokens of a picture, and each cross-attention's keys and values of the tokens.

The layout is the one published in h94/IP-Adapter: ``image_proj.*``, and ``ip_adapter.N.to_k_ip.weight`` and
``…to_v_ip.weight``, N counting attentions of both kinds in the order of diffusers' ``attn_processors``.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipelines.errors import BrokenCheckpoint, InvalidRequest
from pipelines.weight_file import TensorInfo, WeightFile

#: Tokens of every picture once stored. Adapters make 4 or 16; repeated four times, 4 are attended to as they are once,
#: because a softmax over equal groups is the softmax over one.
TOKENS = 16
_PROJECTION = "image_proj."
#: Width of an attention head in the plus adapters' projection.
_HEAD = 64
#: Parts of a layer of the plus adapters' projection: the published names, and diffusers'.
_PLUS_NAMES = {
    "0.norm1": "ln0",
    "0.norm2": "ln1",
    "0.to_q": "attn.to_q",
    "0.to_k": "attn.to_k",
    "0.to_v": "attn.to_v",
    "0.to_out": "attn.to_out.0",
    "1.0": "ff.0",
    "1.1": "ff.1.net.0.proj",
    "1.3": "ff.1.net.2",
}
_PLUS_LAYER = re.compile(r"(layers\.\d+)\.(.+)\.(weight|bias)")


@dataclass(frozen=True, kw_only=True, eq=False)
class IpAdapter:
    """A loaded adapter."""

    #: Tells its contents from all others.
    key: Hashable
    #: What the image encoder made of a picture, (1, …) -> (1, tokens, width of texts).
    projection: nn.Module
    #: It reads the states of a picture's places, not the whole picture's embedding.
    reads_places: bool
    #: Width of what it reads.
    inputs: int
    #: (keys and values of all layers, width of texts): a layer's keys, its values, then the next layer's.
    matrix: Tensor

    def tensors(self) -> Iterator[Tensor]:
        """What it is made of."""
        yield self.matrix
        yield from self.projection.parameters()

    @property
    def bytes(self) -> int:
        """What it takes."""
        return sum(tensor.nbytes for tensor in self.tensors())

    def values(self, features: Tensor) -> Tensor:
        """What an image encoder read, (…) -> (TOKENS, keys and values of all layers), on the features' device."""
        home = self.matrix.device
        try:
            tokens: Tensor = self.projection.to(features.device)(features[None].to(self.matrix.dtype))[0]
            values = tokens @ self.matrix.to(features.device).T
        finally:
            self.projection.to(home)
        return values.repeat(TOKENS // len(values), 1)


def read_ip_adapter(
    path: Path,
    name: str,
    layers: Sequence[tuple[int, int]],
    *,
    key: Hashable,
    model: str,
    dtype: torch.dtype,
    device: torch.device,
) -> IpAdapter:
    """Reads a file for a denoiser whose cross-attentions have these (outputs, width of texts).

    Raises InvalidRequest, naming the adapter, for a file that is damaged, of another kind or for other denoisers.
    """
    try:
        file = WeightFile.open(path, name)
        keys = _layer_keys(file.tensors, layers)
        if keys is None:
            raise _refusal(name, f"is not for {model}: its layers have other sizes")
        width = layers[0][1]
        matrix = torch.empty(sum(2 * outputs for outputs, _ in layers), width, dtype=dtype, device=device)
        with file.reading(name) as opened:
            start = 0
            for one in keys:
                tensor = opened.get_tensor(one)
                matrix[start : start + len(tensor)].copy_(tensor)
                start += len(tensor)
            tensors = {
                one.removeprefix(_PROJECTION): opened.get_tensor(one).to(device, dtype)
                for one in file.tensors
                if one.startswith(_PROJECTION)
            }
    except BrokenCheckpoint as error:
        raise _refusal(name, "cannot be read: it is no sound .safetensors file") from error
    projection, reads_places, inputs = _projection(tensors, name, width)
    return IpAdapter(key=key, projection=projection, reads_places=reads_places, inputs=inputs, matrix=matrix)


def _layer_keys(infos: Mapping[str, TensorInfo], layers: Sequence[tuple[int, int]]) -> list[str] | None:
    """Names of all layers' matrices in order; None when they are not those of the denoiser."""
    shapes = {
        f"ip_adapter.{2 * index + 1}.to_{part}_ip.weight": shape
        for index, shape in enumerate(layers)
        for part in ("k", "v")
    }
    found = {name: info.shape for name, info in infos.items() if name.startswith("ip_adapter.")}
    return list(shapes) if shapes and found == shapes else None


def _projection(tensors: Mapping[str, Tensor], name: str, width: int) -> tuple[nn.Module, bool, int]:
    """The module, which makes tokens of this width; whether it reads places, and the width of what it reads."""
    plus = "latents" in tensors
    if not plus and "proj.weight" not in tensors:
        raise _refusal(name, "is of a kind that is not supported")
    try:
        with torch.device("meta"):
            module, tokens = (_plus if plus else _plain)(tensors)
        module.load_state_dict(_plus_names(tensors) if plus else _plain_names(tensors), assign=True)
        inputs = tensors["proj_in.weight" if plus else "proj.weight"].shape[1]
        made = len(tensors["proj_out.weight" if plus else "norm.weight"])
    except (KeyError, IndexError, RuntimeError, TypeError, ValueError, ZeroDivisionError) as error:
        # torch's own words are of diffusers' names; the cause says more in a log.
        raise _refusal(name, "is damaged: its image_proj is not complete") from error
    if made != width:
        raise _refusal(name, f"is damaged: its image_proj makes tokens of {made} numbers, not {width}")
    if not tokens or TOKENS % tokens:
        raise _refusal(name, f"is not supported: it makes {tokens} tokens of a picture")
    return module.eval().requires_grad_(False), plus, inputs


def _plain(tensors: Mapping[str, Tensor]) -> tuple[Any, int]:
    from diffusers.models.embeddings import ImageProjection

    outputs, inputs = tensors["proj.weight"].shape
    width = len(tensors["norm.weight"])
    tokens = outputs // width
    return ImageProjection(image_embed_dim=inputs, cross_attention_dim=width, num_image_text_embeds=tokens), tokens


def _plain_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key.replace("proj.", "image_embeds."): tensor for key, tensor in tensors.items()}


def _plus(tensors: Mapping[str, Tensor]) -> tuple[Any, int]:
    from diffusers.models.embeddings import IPAdapterPlusImageProjection

    _, tokens, hidden = tensors["latents"].shape
    projection = IPAdapterPlusImageProjection(
        embed_dims=tensors["proj_in.weight"].shape[1],
        output_dims=len(tensors["proj_out.weight"]),
        hidden_dims=hidden,
        depth=len({key.split(".")[1] for key in tensors if key.startswith("layers.")}),
        dim_head=_HEAD,
        heads=len(tensors["layers.0.0.to_q.weight"]) // _HEAD,
        num_queries=tokens,
        ffn_ratio=len(tensors["layers.0.1.1.weight"]) // hidden,
    )
    return projection, tokens


def _plus_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    renamed: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        parts = {key: tensor}
        if ".to_kv." in key:
            keys, values = tensor.chunk(2)
            parts = {key.replace("to_kv", "to_k"): keys, key.replace("to_kv", "to_v"): values}
        for one, value in parts.items():
            layer = _PLUS_LAYER.fullmatch(one)
            renamed[one if layer is None else f"{layer[1]}.{_PLUS_NAMES[layer[2]]}.{layer[3]}"] = value
    return renamed


def _refusal(name: str, why: str) -> InvalidRequest:
    return InvalidRequest(f"IP-Adapter {name} {why}", field="ip_adapter")
