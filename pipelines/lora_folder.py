"""The operator's LoRA files: looked up when they are asked for, so that a new one needs no restart."""

from __future__ import annotations

from pathlib import Path

from pipelines.errors import BrokenCheckpoint
from pipelines.weight_file import WeightFile

_SUFFIX = ".safetensors"


def find_lora(folder: Path, name: str) -> Path | None:
    """The file NAME.safetensors, given with or without its suffix; None for none, or for one that is still written.

    The folder is listed and names compared: a name can lead nowhere else.
    """
    wanted = name.removesuffix(_SUFFIX)
    path = next((file for file in folder.glob(f"*{_SUFFIX}") if file.stem == wanted), None)
    if path is None:
        return None
    try:
        WeightFile.open(path, name)
    except BrokenCheckpoint:
        return None
    return path
