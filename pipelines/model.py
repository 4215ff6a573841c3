"""One configured checkpoint of a family: what its TOML file says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from pipelines.request import Task


class Offload(StrEnum):
    """What of a model rests in the computer's memory while it is not used; see ``pipelines.placement``."""

    #: Nothing: everything stays on the device.
    NONE = "none"
    #: Text encoders, which work only when a request arrives; Flux' T5 alone takes 9.5 GB in 16 bits.
    ENCODERS = "encoders"
    #: Whole parts: one of text encoders, denoiser and VAE is on the device at a time.
    MODEL = "model"
    #: As ``MODEL``, and the denoiser layer by layer: the smallest, and slow.
    SEQUENTIAL = "sequential"


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a model may be asked for; requests outside are clamped or refused by the dialect."""

    #: Smallest and largest width and height, in pixels.
    min_side: int = 64
    max_side: int = 1024
    #: Largest width x height.
    max_pixels: int = 1024 * 1024
    #: Width and height are multiples of this (SD 8, Flux 16).
    multiple: int = 8
    #: At most 150: beyond, integer timestep spacing biases several schedulers.
    max_steps: int = 150
    max_samples: int = 4


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A model as configured; ``None`` in a default means that the dialect's documented default holds."""

    id: str
    #: A key of ``pipelines.registry.FAMILIES``.
    family: str
    aliases: tuple[str, ...] = ()
    #: Local diffusers folder. With ``file``: a folder of configurations and tokenizers, without weights.
    folder: Path
    #: One .safetensors file that holds the whole checkpoint in its original layout.
    file: Path | None = None
    #: Files that replace single components of the folder: "unet" -> a .safetensors file.
    components: Mapping[str, Path] = field(default_factory=dict)
    #: Forced on the checkpoint's scheduler configuration (SDXL-Lightning: timestep_spacing trailing).
    scheduler_options: Mapping[str, Any] = field(default_factory=dict)
    #: Key of ``pipelines.demo.BUILDERS`` when the folder is a demo checkpoint, made at first need; else None.
    demo: str | None = None
    #: Said in ``/health`` and in every answer's ``meta``: for example that a demo model draws instead of Flux.
    note: str | None = None
    #: Name in ``schedulers.registry.SCHEDULERS``; None = the checkpoint's own.
    scheduler: str | None = None
    width: int | None = None
    height: int | None = None
    steps: int | None = None
    guidance: float | None = None
    #: See ``ImageRequest.clip_skip``.
    clip_skip: int | None = None
    limits: Limits = Limits()
    #: Tokens that Flux' T5 reads; None = diffusers' 512.
    text_length: int | None = None
    #: What may be asked of it: an inpaint checkpoint does nothing else; nothing of a model that looks at pictures.
    tasks: frozenset[Task] = frozenset(Task)
    offload: Offload = Offload.NONE
    #: "auto" (bfloat16 from compute capability 8.0, float16 below, float32 on CPU) or a torch dtype's name.
    dtype: str = "auto"
    #: Files of LoRAs that belong to it, laid over all that it draws at strength 1: the base's weights stay the base's.
    loras: tuple[Path, ...] = ()
