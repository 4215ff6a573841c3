"""A LoRA file: low-rank pairs by layer, whichever of the usual layouts it was saved in.

Layouts: kohya-ss/sd-scripts (``lora_unet_….lora_down.weight``), peft (``unet.….lora_A.weight``) and diffusers before
peft (``unet.….lora.down.weight``, ``….processor.to_q_lora.down.weight``).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from pipelines.errors import BrokenCheckpoint, InvalidRequest
from pipelines.weight_file import WeightFile

#: What keys hold -> what kind of adapter has them; none of these is a plain product of two matrices.
_REFUSED = {
    r"\.dora_scale": "a DoRA",
    r"\.lora_magnitude_vector": "a DoRA",
    r"\.hada_": "a LoHa",
    r"\.lokr_": "a LoKr",
    r"\.lora_mid": "a LoCon with Tucker decomposition",
    r"\.oft_": "an OFT",
    r"\.on_input": "an IA3",
    r"\.diff(_b)?$": "a file of full weight differences",
    r"\.lora_B(\.default)?\.bias$": "a LoRA with biases",
}
#: Ends of keys: matrix, then what stands before ".weight" for it.
_ENDS = {
    "down": (".lora_down", ".lora_A", ".lora_A.default", ".lora.down", ".lora_linear_layer.down", "_lora.down"),
    "up": (".lora_up", ".lora_B", ".lora_B.default", ".lora.up", ".lora_linear_layer.up", "_lora.up"),
}
_PARTS = {f"{end}.weight": part for part, ends in _ENDS.items() for end in ends} | {".alpha": "alpha"}
_WRAPPER = "base_model.model."
#: The component that is denoised with, under whatever name a model's folder has it.
DENOISER = "denoiser"
#: Beginnings of keys -> the component whose layers follow, as a model's folder names it. Keys that begin otherwise
#: are the denoiser's. Flux has CLIP first and T5 second, which kohya counts as the third, as in SD3.
_COMPONENTS = {
    "lora_unet_": DENOISER,
    "lora_transformer_": DENOISER,
    "unet.": DENOISER,
    "transformer.": DENOISER,
    "diffusion_model.": DENOISER,
    "model.diffusion_model.": DENOISER,
    "lora_te_": "text_encoder",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
    "lora_te3_": "text_encoder_2",
    "text_encoder.": "text_encoder",
    "text_encoder_2.": "text_encoder_2",
    "text_model.": "text_encoder",
    "clip_l.transformer.": "text_encoder",
    "clip_g.transformer.": "text_encoder_2",
    "t5xxl.transformer.": "text_encoder_2",
}
#: Textual inversions that came with the training of a LoRA.
_BUNDLED = "bundle_emb"


@dataclass(frozen=True, kw_only=True, eq=False)
class LoraPair:
    """What is added to a layer's weight: scale x up @ down."""

    #: (rank, inputs), or (rank, inputs, height, width) of a convolution.
    down: Tensor
    #: (outputs, rank)
    up: Tensor
    #: alpha / rank.
    scale: float


@dataclass(frozen=True, kw_only=True, eq=False)
class LoraFile:
    """What a file holds."""

    #: Component -> layer as the file names it, without the component and with "_" for "." -> pair.
    parts: Mapping[str, Mapping[str, LoraPair]]
    #: The file has textual inversions too.
    has_embeddings: bool


def read_lora(path: Path, name: str) -> LoraFile:
    """Reads a file; InvalidRequest, naming the LoRA, for one that is damaged or of a kind that is not drawn."""
    try:
        file = WeightFile.open(path, name)
        _refuse(file, name)
        metadata = _metadata(file.metadata)
        if any(value for option, value in metadata.items() if option.endswith("use_dora")):
            raise InvalidRequest(f"LoRA {name} is a DoRA, which is not supported", field="loras")
        found: dict[tuple[str, str], dict[str, Tensor]] = {}
        with file.reading(name) as opened:
            for key in file.tensors:
                if key.startswith(_BUNDLED):
                    continue
                component, layer, part = _place(key.removeprefix(_WRAPPER), name)
                found.setdefault((component, layer), {})[part] = opened.get_tensor(key)
    except BrokenCheckpoint as error:
        raise InvalidRequest(f"LoRA {name} cannot be read: it is no sound .safetensors file", field="loras") from error
    options = {component: _options(metadata, component) for component, _ in found}
    parts: dict[str, dict[str, LoraPair]] = {}
    for (component, layer), matrices in found.items():
        pair = _pair(layer, matrices, options[component], name)
        parts.setdefault(component, {})[layer.replace(".", "_")] = pair
    return LoraFile(parts=parts, has_embeddings=any(key.startswith(_BUNDLED) for key in file.tensors))


def _refuse(file: WeightFile, name: str) -> None:
    for key in file.tensors:
        for mark, kind in _REFUSED.items():
            if re.search(mark, key):
                raise InvalidRequest(f"LoRA {name} is {kind}, which is not supported", field="loras")


def _place(key: str, name: str) -> tuple[str, str, str]:
    """Component, layer and part of a key."""
    component = DENOISER
    for prefix, known in _COMPONENTS.items():
        if key.startswith(prefix):
            component, key = known, key.removeprefix(prefix)
            break
    # Longest first: ".lora.down" and "_lora.down" must not be taken for one another.
    end = next((end for end in sorted(_PARTS, key=len, reverse=True) if key.endswith(end)), None)
    if end is None:
        raise InvalidRequest(f"LoRA {name} is not supported: {key[:100]} is no part of a LoRA", field="loras")
    return component, key.removesuffix(end).replace(".processor.", "."), _PARTS[end]


def _pair(layer: str, parts: Mapping[str, Tensor], options: Mapping[str, Any], name: str) -> LoraPair:
    down, up = parts.get("down"), parts.get("up")
    if down is None or up is None:
        raise InvalidRequest(f"LoRA {name} is incomplete: {layer[:100]} has one matrix of two", field="loras")
    rank = down.shape[0] if down.dim() in (2, 4) and up.dim() in (2, 4) else 0
    alpha = parts.get("alpha")
    if rank == 0 or up.numel() != up.shape[0] * rank or (alpha is not None and alpha.numel() != 1):
        raise InvalidRequest(f"LoRA {name} is damaged: the shapes of {layer[:100]} do not match", field="loras")
    try:
        scale = _scale(layer, rank, None if alpha is None else float(alpha), options)
    except (TypeError, ValueError, AttributeError) as error:
        raise InvalidRequest(f"LoRA {name} is damaged: its configuration has no proper alpha", field="loras") from error
    return LoraPair(down=down, up=up.reshape(-1, rank), scale=scale)


def _metadata(metadata: Mapping[str, str]) -> dict[str, Any]:
    """peft's configuration as diffusers saves it with the weights."""
    try:
        options = json.loads(metadata.get("lora_adapter_metadata", "{}"))
    except (ValueError, RecursionError):
        return {}
    return options if isinstance(options, dict) else {}


def _options(metadata: Mapping[str, Any], component: str) -> dict[str, Any]:
    """The part of peft's configuration for one component, without the component's name."""
    split = ((*key.partition(".")[::2], value) for key, value in metadata.items())
    return {option: value for folder, option, value in split if _COMPONENTS.get(f"{folder}.") == component}


def _scale(layer: str, rank: int, alpha: float | None, options: Mapping[str, Any]) -> float:
    """alpha / rank; an alpha beside the matrices wins over peft's configuration, and none means the rank."""
    if alpha is None:
        patterns = options.get("alpha_pattern") or {}
        ours = (value for key, value in patterns.items() if re.search(rf"(^|\.){re.escape(key)}$", layer))
        alpha = float(next(ours, options.get("lora_alpha", rank)))
    return alpha / (math.sqrt(rank) if options.get("use_rslora") else rank)
