"""The families by name."""

from __future__ import annotations

#: family -> "module:Class" of a ``pipelines.base.Pipeline`` with a constructor ``load(spec: ModelSpec, host: Host)``.
FAMILIES: dict[str, str] = {
    "sd15": "pipelines.sd15:StableDiffusion15",
    "sdxl": "pipelines.sdxl:StableDiffusionXL",
    "flux": "pipelines.flux:Flux",
    "florence2": "pipelines.florence2:Florence2",
}
#: Those that look at pictures instead of drawing them.
LOOKING = frozenset({"florence2"})

#: As ``FAMILIES``, of what the server offers beside the models: no model file names them.
HELPERS: dict[str, str] = {
    "upscaler": "pipelines.upscale:Upscaler",
}
