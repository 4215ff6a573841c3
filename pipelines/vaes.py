"""The VAEs of one model: its own, and those that requests name, loaded when first asked for."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipelines import single_file
from pipelines.auxiliary import AuxiliaryKind, FindAuxiliary
from pipelines.checkpoint import Checkpoint
from pipelines.errors import BrokenCheckpoint, Error, InvalidRequest
from pipelines.extras import Extras
from pipelines.folder import find_weights
from pipelines.lru import BytesLru
from pipelines.model import ModelSpec
from pipelines.placement import Part, Placement
from pipelines.shared import SharedComponents, identity
from pipelines.vae import Vae
from pipelines.weight_file import WeightFile

#: Bytes of VAEs kept beside a model's own: four of SD1.5's or SDXL's in 16 bits. Rows keep what they need all the same.
KEPT_BYTES = 700_000_000
#: What another VAE must have in common with the model's own.
ALIKE = {"latent_channels": "latent channels", "in_channels": "input channels", "out_channels": "output channels"}


class Vaes:
    """A model's own VAE and others by name. The device thread alone uses it."""

    def __init__(
        self,
        own: Vae,
        spec: ModelSpec,
        *,
        dtype: torch.dtype,
        upcasts: bool,
        placement: Placement,
        find: FindAuxiliary,
        shared: SharedComponents | None,
        extras: Extras,
    ) -> None:
        """``upcasts``: see ``dtype_of``."""
        self.own = own
        self._spec = spec
        self._dtype = dtype
        self._upcasts = upcasts
        self._placement = placement
        self._find = find
        self._shared = shared
        self._kept: BytesLru[Vae] = BytesLru(KEPT_BYTES, lambda vae: vae.bytes)
        placement.add(Part.VAE, own.module)
        extras.add(self)

    def tensors(self) -> Iterator[Tensor]:
        """See ``Extra.tensors``: the others', not the model's own."""
        modules = (vae.module for vae in self._kept.values())
        return self._placement.there(weight for module in modules for weight in module.parameters())

    def release(self) -> None:
        """See ``Extra.release``."""
        self._kept.clear()

    def get(self, name: str | None) -> Vae:
        """The VAE of this name; None: the model's own.

        Raises InvalidRequest, with its name, for one that is unknown, damaged, or of another kind of model.
        """
        if name is None:
            return self.own
        path = self._find(AuxiliaryKind.VAE, name)
        if path is None:
            raise InvalidRequest(f"VAE not found: {name[:100]}", field="vae")
        try:
            key = identity(_files(path, name))
            found = self._kept.get(key)
            if found is None:
                found = Vae(self._load(path, name), key=key)
                self._placement.add(Part.VAE, found.module)
                self._kept.put(key, found)
        except (BrokenCheckpoint, OSError) as error:
            said = str(error).removeprefix(f"model {name}: ") if isinstance(error, Error) else "it cannot be read"
            raise InvalidRequest(f"VAE {name[:100]}: {said}", field="vae") from error
        return found

    def _load(self, path: Path, name: str) -> Any:
        from diffusers import AutoencoderKL

        if path.is_dir():
            checkpoint = Checkpoint(name, path.parent, **self._surroundings())
            component = path.name
            config = checkpoint.read_json(f"{component}/config.json")
        else:
            # A single file says nothing of itself: it is read as the model's own VAE is configured.
            alone = replace(self._spec, id=name, components={"vae": path})
            checkpoint = Checkpoint.open(alone, **self._surroundings())
            component = "vae"
            config = checkpoint.read_json(f"{component}/config.json") | _told(path, name)
        self._refuse_other(config, name)
        return checkpoint.load_module(component, AutoencoderKL, dtype=dtype_of(config, self._dtype, self._upcasts))

    def _surroundings(self) -> dict[str, Any]:
        return {"dtype": self._dtype, "device": self._placement.loading_device, "shared": self._shared}

    def _refuse_other(self, config: Mapping[str, Any], name: str) -> None:
        wanted = self.own.module.config
        for key, words in ALIKE.items():
            has = config.get(key, wanted[key])
            if has != wanted[key]:
                raise BrokenCheckpoint(f"it has {has} {words}, not the {wanted[key]} of {self._spec.id}")
        if not isinstance(config.get("block_out_channels", []), list | tuple):
            raise BrokenCheckpoint("its block_out_channels are no list")
        scale = config.get("scaling_factor", 1.0)
        if not isinstance(scale, int | float) or not 0 < scale < math.inf:
            raise BrokenCheckpoint(f"its scaling_factor is {str(scale)[:20]}, no number above 0")
        levels, own = (len(one.get("block_out_channels", ())) for one in (config, wanted))
        if levels != own:
            raise BrokenCheckpoint(f"it has {levels} levels, not the {own} of {self._spec.id}")
        if config.get("latents_mean") is not None:
            raise BrokenCheckpoint("it has latents_mean, which is not supported")


def dtype_of(config: Mapping[str, Any], dtype: torch.dtype, upcasts: bool) -> torch.dtype:
    """The model's dtype; but, in families whose stock pipelines do so (``upcasts``), float32 in place of float16.

    That is for a VAE that overflows in float16 and says so, which is diffusers' default.
    """
    return torch.float32 if upcasts and dtype is torch.float16 and config.get("force_upcast", True) else dtype


def _files(path: Path, name: str) -> list[Path]:
    if not path.is_dir():
        return [path]
    found = find_weights(path, name)
    return [path / "config.json", *(() if found is None else found.files)]


def _told(path: Path, name: str) -> dict[str, Any]:
    """What of its configuration the file itself tells."""
    file = WeightFile.open(path, name)
    layout = single_file.layout_of("vae", file)
    entrance = None if layout is None else file.tensors.get(f"{layout.prefix}decoder.conv_in.weight")
    return {} if entrance is None or len(entrance.shape) < 2 else {"latent_channels": entrance.shape[1]}
