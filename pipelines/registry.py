"""The families by name."""

from __future__ import annotations

#: family -> "module:Class" of a ``pipelines.base.Pipeline`` with a ``load(spec, device, slots)`` constructor.
FAMILIES: dict[str, str] = {
    "sd15": "pipelines.sd15:StableDiffusion15",
}
