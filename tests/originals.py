"""Writes diffusers folders as the single files they were once published as, from the layouts' public names."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

Tensors = dict[str, Tensor]

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_UNET = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_OPEN_CLIP = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
_FLUX = {
    "x_embedder": "img_in",
    "context_embedder": "txt_in",
    "time_text_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_text_embed.timestep_embedder.linear_2": "time_in.out_layer",
    "time_text_embed.text_embedder.linear_1": "vector_in.in_layer",
    "time_text_embed.text_embedder.linear_2": "vector_in.out_layer",
    "time_text_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
    "time_text_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
    "proj_out": "final_layer.linear",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
}
_FLUX_DOUBLE = {
    "norm1.linear": "img_mod.lin",
    "norm1_context.linear": "txt_mod.lin",
    "attn.to_out.0": "img_attn.proj",
    "attn.to_add_out": "txt_attn.proj",
    "attn.norm_q": "img_attn.norm.query_norm",
    "attn.norm_k": "img_attn.norm.key_norm",
    "attn.norm_added_q": "txt_attn.norm.query_norm",
    "attn.norm_added_k": "txt_attn.norm.key_norm",
    "ff.net.0.proj": "img_mlp.0",
    "ff.net.2": "img_mlp.2",
    "ff_context.net.0.proj": "txt_mlp.0",
    "ff_context.net.2": "txt_mlp.2",
}
_FLUX_SINGLE = {
    "norm.linear": "modulation.lin",
    "proj_out": "linear2",
    "attn.norm_q": "norm.query_norm",
    "attn.norm_k": "norm.key_norm",
}


def weights(folder: Path, component: str) -> Tensors:
    """All tensors of a component's folder."""
    return {
        name: tensor for file in (folder / component).glob("*.safetensors") for name, tensor in load_file(file).items()
    }


def skeleton(folder: Path, target: Path) -> Path:
    """A copy of a diffusers folder without its weights."""
    shutil.copytree(folder, target, ignore=shutil.ignore_patterns("*.safetensors"))
    return target


def write(file: Path, tensors: Tensors) -> Path:
    """One safetensors file."""
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, file)
    return file


def stable_diffusion(folder: Path, file: Path) -> Path:
    """SD1.5 in Stability's layout, with the keys that published files have besides."""
    tensors = {
        **_prefixed("model.diffusion_model.", unet(folder)),
        **_prefixed("first_stage_model.", vae(folder)),
        **_prefixed("cond_stage_model.transformer.text_model.", weights(folder, "text_encoder")),
        "cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(77)[None],
        "alphas_cumprod": torch.zeros(1000),
    }
    return write(file, tensors)


def sdxl(folder: Path, file: Path) -> Path:
    """SDXL in Stability's layout."""
    tensors = {
        **_prefixed("model.diffusion_model.", unet(folder)),
        **_prefixed("first_stage_model.", vae(folder)),
        **_prefixed("conditioner.embedders.0.transformer.text_model.", weights(folder, "text_encoder")),
        **_prefixed("conditioner.embedders.1.model.", open_clip(weights(folder, "text_encoder_2"))),
        "conditioner.embedders.1.model.logit_scale": torch.tensor(4.6),
    }
    return write(file, tensors)


def flux(folder: Path, file: Path, prefix: str = "") -> Path:
    """A Flux transformer in Black Forest Labs' layout."""
    return write(file, _prefixed(prefix, flux_transformer(weights(folder, "transformer"))))


def _prefixed(prefix: str, tensors: Tensors) -> Tensors:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def unet(folder: Path) -> Tensors:
    """A UNet's tensors without the prefix they have in a whole checkpoint."""
    config: dict[str, Any] = json.loads((folder / "unet" / "config.json").read_text())
    per_level = config["layers_per_block"] + 1
    return {
        _unet_name(name, per_level, config["up_block_types"]): tensor
        for name, tensor in weights(folder, "unet").items()
    }


def _unet_name(name: str, per_level: int, up_blocks: list[str]) -> str:
    module, _, kind = name.rpartition(".")
    if module in _UNET:
        return f"{_UNET[module]}.{kind}"
    match module.split("."):
        case ["down_blocks", block, "resnets", layer, *rest]:
            return f"input_blocks.{1 + int(block) * per_level + int(layer)}.0.{_RESNET['.'.join(rest)]}.{kind}"
        case ["down_blocks", block, "attentions", layer, *rest]:
            return f"input_blocks.{1 + int(block) * per_level + int(layer)}.1.{'.'.join(rest)}.{kind}"
        case ["down_blocks", block, "downsamplers", "0", "conv"]:
            return f"input_blocks.{(int(block) + 1) * per_level}.0.op.{kind}"
        case ["mid_block", "resnets", layer, *rest]:
            return f"middle_block.{2 * int(layer)}.{_RESNET['.'.join(rest)]}.{kind}"
        case ["mid_block", "attentions", "0", *rest]:
            return f"middle_block.1.{'.'.join(rest)}.{kind}"
        case ["up_blocks", block, "resnets", layer, *rest]:
            return f"output_blocks.{int(block) * per_level + int(layer)}.0.{_RESNET['.'.join(rest)]}.{kind}"
        case ["up_blocks", block, "attentions", layer, *rest]:
            return f"output_blocks.{int(block) * per_level + int(layer)}.1.{'.'.join(rest)}.{kind}"
        case ["up_blocks", block, "upsamplers", "0", "conv"]:
            place = 2 if up_blocks[int(block)].startswith("CrossAttn") else 1
            return f"output_blocks.{(int(block) + 1) * per_level - 1}.{place}.conv.{kind}"
    raise KeyError(name)


def vae(folder: Path) -> Tensors:
    """A VAE's tensors without the prefix they have in a whole checkpoint."""
    return {_vae_name(name): _as_conv(name, tensor) for name, tensor in weights(folder, "vae").items()}


def _vae_name(name: str) -> str:
    name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    module, _, kind = name.rpartition(".")
    match module.split("."):
        case ["encoder", "down_blocks", level, "resnets", layer, *rest]:
            return f"encoder.down.{level}.block.{layer}.{'.'.join(rest)}.{kind}"
        case ["encoder", "down_blocks", level, "downsamplers", "0", "conv"]:
            return f"encoder.down.{level}.downsample.conv.{kind}"
        case ["decoder", "up_blocks", level, "resnets", layer, *rest]:
            return f"decoder.up.{3 - int(level)}.block.{layer}.{'.'.join(rest)}.{kind}"
        case ["decoder", "up_blocks", level, "upsamplers", "0", "conv"]:
            return f"decoder.up.{3 - int(level)}.upsample.conv.{kind}"
        case [side, "mid_block", "resnets", layer, *rest]:
            return f"{side}.mid.block_{int(layer) + 1}.{'.'.join(rest)}.{kind}"
        case [side, "mid_block", "attentions", "0", *rest]:
            return f"{side}.mid.attn_1.{_VAE_ATTENTION['.'.join(rest)]}.{kind}"
    return name


def _as_conv(name: str, tensor: Tensor) -> Tensor:
    """Attention over places is written as a 1 x 1 convolution."""
    return tensor[:, :, None, None] if "attentions" in name and tensor.ndim == 2 else tensor


def open_clip(tensors: Tensors) -> Tensors:
    """A text encoder in OpenCLIP's names: queries, keys and values in one, the projection transposed."""
    result = {
        "token_embedding.weight": tensors["text_model.embeddings.token_embedding.weight"],
        "positional_embedding": tensors["text_model.embeddings.position_embedding.weight"],
        "ln_final.weight": tensors["text_model.final_layer_norm.weight"],
        "ln_final.bias": tensors["text_model.final_layer_norm.bias"],
        "text_projection": tensors["text_projection.weight"].T,
    }
    for name, tensor in tensors.items():
        if not name.startswith("text_model.encoder.layers."):
            continue
        layer, _, rest = name.removeprefix("text_model.encoder.layers.").partition(".")
        module, _, kind = rest.rpartition(".")
        place = f"transformer.resblocks.{layer}"
        if module == "self_attn.q_proj":
            parts = [tensors[name.replace("q_proj", f"{one}_proj")] for one in "qkv"]
            result[f"{place}.attn.in_proj_{kind}"] = torch.cat(parts)
        elif module in _OPEN_CLIP:
            result[f"{place}.{_OPEN_CLIP[module]}.{kind}"] = tensor
    return result


def flux_transformer(tensors: Tensors) -> Tensors:
    """Black Forest Labs' names: queries, keys and values in one; shift before scale in the last modulation."""
    return {name: tensor for key in tensors for name, tensor in _flux_tensor(key, tensors)}


def _flux_tensor(key: str, tensors: Tensors) -> Iterator[tuple[str, Tensor]]:
    def joined(*others: str) -> Tensor:
        return torch.cat([tensors[f"{block}.{other}.{kind}"] for other in others])

    module, _, kind = key.rpartition(".")
    match module.split(".", 2):
        case ["transformer_blocks", number, inner]:
            block, place, names = f"transformer_blocks.{number}", f"double_blocks.{number}", _FLUX_DOUBLE
        case ["single_transformer_blocks", number, inner]:
            block, place, names = f"single_transformer_blocks.{number}", f"single_blocks.{number}", _FLUX_SINGLE
        case _:
            tensor = tensors[key]
            yield f"{_FLUX[module]}.{kind}", torch.cat(tensor.chunk(2)[::-1]) if module == "norm_out.linear" else tensor
            return
    if inner == "attn.to_q" and place.startswith("single"):
        yield f"{place}.linear1.{kind}", joined("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")
    elif inner == "attn.to_q":
        yield f"{place}.img_attn.qkv.{kind}", joined("attn.to_q", "attn.to_k", "attn.to_v")
    elif inner == "attn.add_q_proj":
        yield f"{place}.txt_attn.qkv.{kind}", joined("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")
    elif inner in names:
        yield f"{place}.{names[inner]}.{'scale' if 'norm_' in inner else kind}", tensors[key]
