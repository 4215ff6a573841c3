"""The families of a dedicated server's API: the word between ``/v1/enterprise/`` and the verb."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

#: Word -> the model that draws for a call that names none; None = the default one. A model that is not here can be
#: given the word as an alias.
SEGMENTS: Mapping[str, str | None] = MappingProxyType(
    {
        "images": None,
        "text_to_image": None,
        "txt2img": None,
        "realtime": None,
        "image_editing": None,
        "super_resolution": None,
        "super-resolution": None,
        "flux": "flux",
        "flux_klein": "flux_klein",
        "flux_kontext_dev": "flux_kontext_dev",
        "z_image_turbo": "z_image_turbo",
        "qwen": "qwen",
    }
)
