"""Components out of one safetensors file, whichever of the published layouts it has.

The layouts are Stability's (Stable Diffusion 1 and XL, as A1111 and ComfyUI use them), Black Forest Labs' (Flux) and
diffusers' own. Names are translated by diffusers' converters; what comes out is compared with the module name by name
and shape by shape, because the converters pass over what they do not find.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pipelines.flux_layout import to_diffusers
from pipelines.weight_file import WeightFile

Tensors = dict[str, Tensor]
#: (tensors without the layout's prefix, configuration, the module that will hold them) -> tensors in diffusers' names.
Convert = Callable[[Tensors, Mapping[str, Any], nn.Module], Tensors]


def _as_is(tensors: Tensors, config: Mapping[str, Any], module: nn.Module) -> Tensors:
    return tensors


def _unet(tensors: Tensors, config: Mapping[str, Any], module: nn.Module) -> Tensors:
    from diffusers.loaders.single_file_utils import LDM_UNET_KEY, convert_ldm_unet_checkpoint

    converted: Tensors = convert_ldm_unet_checkpoint(
        {LDM_UNET_KEY + key: value for key, value in tensors.items()}, config
    )
    return converted


def _vae(tensors: Tensors, config: Mapping[str, Any], module: nn.Module) -> Tensors:
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    converted: Tensors = convert_ldm_vae_checkpoint(tensors, config)
    return converted


def _open_clip(tensors: Tensors, config: Mapping[str, Any], module: nn.Module) -> Tensors:
    from diffusers.loaders.single_file_utils import convert_open_clip_checkpoint

    converted: Tensors = convert_open_clip_checkpoint(module, tensors, prefix="")
    return converted


def _flux(tensors: Tensors, config: Mapping[str, Any], module: nn.Module) -> Tensors:
    return to_diffusers(tensors)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """One way in which files hold a component."""

    #: What all names of the component begin with.
    prefix: str = ""
    #: A name, after the prefix, by which the layout is known.
    mark: str
    convert: Convert = _as_is


_POSITIONS = "embeddings.position_embedding.weight"
#: Component -> layouts, the first that fits is taken.
LAYOUTS: dict[str, tuple[Layout, ...]] = {
    "unet": (
        Layout(mark="down_blocks.0.resnets.0.conv1.weight"),
        Layout(prefix="model.diffusion_model.", mark="input_blocks.0.0.weight", convert=_unet),
        Layout(mark="input_blocks.0.0.weight", convert=_unet),
    ),
    "transformer": (
        Layout(mark="x_embedder.weight"),
        Layout(prefix="model.diffusion_model.", mark="img_in.weight", convert=_flux),
        Layout(mark="img_in.weight", convert=_flux),
    ),
    "vae": (
        Layout(prefix="first_stage_model.", mark="encoder.conv_in.weight", convert=_vae),
        Layout(prefix="vae.", mark="encoder.conv_in.weight", convert=_vae),
        Layout(mark="encoder.mid_block.resnets.0.conv1.weight"),
        Layout(mark="encoder.mid.block_1.conv1.weight", convert=_vae),
    ),
    "text_encoder": (
        Layout(prefix="cond_stage_model.transformer.", mark=f"text_model.{_POSITIONS}"),
        Layout(prefix="conditioner.embedders.0.transformer.", mark=f"text_model.{_POSITIONS}"),
        Layout(mark=f"text_model.{_POSITIONS}"),
    ),
    "text_encoder_2": (
        Layout(prefix="conditioner.embedders.1.model.", mark="positional_embedding", convert=_open_clip),
        Layout(mark=f"text_model.{_POSITIONS}"),
    ),
}


def layout_of(component: str, file: WeightFile) -> Layout | None:
    """How the file holds the component; None when it does not."""
    for layout in LAYOUTS.get(component, ()):
        if layout.prefix + layout.mark in file.tensors:
            return layout
    return None


def names_of(layout: Layout, file: WeightFile) -> list[str]:
    """The component's tensors, in the file's names."""
    return [name for name in file.tensors if name.startswith(layout.prefix)]


def variant_of(file: WeightFile) -> str | None:
    """``schnell`` for a Flux transformer without guidance: its scheduler is another; else None."""
    layout = layout_of("transformer", file)
    if layout is None:
        return None
    guided = any("guidance_in." in name or ".guidance_embedder." in name for name in file.tensors)
    return None if guided else "schnell"


def adapted(component: str, config: Mapping[str, Any], file: WeightFile, layout: Layout) -> dict[str, Any]:
    """The configuration with what the file itself tells: input channels, and inputs for guidance."""

    told: dict[str, Any] = {}
    if component == "unet":
        told["in_channels"] = _columns(file, layout, "conv_in.weight", "input_blocks.0.0.weight")
        told["time_cond_proj_dim"] = _columns(file, layout, "time_embedding.cond_proj.weight")
    elif component == "transformer":
        told["in_channels"] = _columns(file, layout, "x_embedder.weight", "img_in.weight")
        # Flux Fill reads more than it predicts.
        told["out_channels"] = config.get("out_channels") or config.get("in_channels")
        told["guidance_embeds"] = variant_of(file) != "schnell"
    return {**config, **{name: value for name, value in told.items() if value is not None}}


def _columns(file: WeightFile, layout: Layout, *names: str) -> int | None:
    """The second axis of the first of these tensors that the file has."""
    for name in names:
        info = file.tensors.get(layout.prefix + name)
        if info is not None and len(info.shape) > 1:
            return info.shape[1]
    return None


def read(file: WeightFile, layout: Layout, config: Mapping[str, Any], module: nn.Module) -> Tensors:
    """The component's tensors in the module's names, on the CPU, in the file's dtypes; may hold names it lacks."""
    from safetensors import safe_open

    with safe_open(file.path, framework="pt") as opened:
        tensors = {name.removeprefix(layout.prefix): opened.get_tensor(name) for name in names_of(layout, file)}
    converted = layout.convert(tensors, config, module)
    # CLIP's text model stands under ``text_model`` in published files, and in some of transformers' classes.
    expected = module.state_dict().keys()
    for name in list(converted):
        bare = name.removeprefix("text_model.")
        if name not in expected and bare in expected:
            converted[bare] = converted.pop(name)
    return converted


def differences(tensors: Mapping[str, Tensor], module: nn.Module) -> tuple[list[str], list[str]]:
    """The module's tensors that are missing, and those of another shape."""
    expected = module.state_dict()
    missing = [name for name in expected if name not in tensors]
    wrong = [name for name, value in expected.items() if name in tensors and tensors[name].shape != value.shape]
    return missing, wrong


def fill(module: nn.Module, tensors: Mapping[str, Tensor], dtype: torch.dtype, device: torch.device) -> None:
    """Puts the tensors in place of the module's empty ones."""
    state = {}
    for name in module.state_dict():
        wanted = dtype if tensors[name].is_floating_point() else tensors[name].dtype
        # A copy: what is mapped from the file is not aligned, and gone when the file is replaced.
        state[name] = tensors[name].to(device, wanted, copy=True)
    module.load_state_dict(state, assign=True)
