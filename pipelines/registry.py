"""The families by name."""

from __future__ import annotations

#: family -> "module:Class" of a ``pipelines.base.Pipeline`` with a constructor
#: ``load(spec: ModelSpec, device: torch.device, slots: int, read_input: ReadInput | None)``.
FAMILIES: dict[str, str] = {
    "sd15": "pipelines.sd15:StableDiffusion15",
    "sdxl": "pipelines.sdxl:StableDiffusionXL",
    "flux": "pipelines.flux:Flux",
}
