"""Whether weights are there, whole, without loading them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

#: The one format that is read: it holds numbers and nothing that runs.
SUFFIX = ".safetensors"
#: Formats of the same checkpoints that run code when opened.
PICKLES = frozenset({".ckpt", ".bin", ".pt", ".pth"})

#: Every family that model files may name, built or not -> the file by which its folder is known to be there.
FAMILY_MARKS: Mapping[str, str] = MappingProxyType(
    {
        "sd15": "model_index.json",
        "sdxl": "model_index.json",
        "flux": "model_index.json",
        "florence2": "config.json",
    }
)

#: A longer header is no model's (the format's own limit).
_MAX_HEADER_BYTES = 100_000_000


def is_whole(file: Path) -> bool:
    """The tensors that the safetensors header lists end where the file ends: false for a copy under way."""
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if not 2 <= length <= min(_MAX_HEADER_BYTES, size - 8):
                return False
            header = json.loads(stream.read(length))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        return bool(ends) and bool(8 + length + max(ends) == size)
    except (OSError, ValueError, TypeError, KeyError, IndexError, AttributeError):
        return False
