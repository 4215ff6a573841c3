"""The operator's weights beside the models: looked up when they are asked for, so that new ones need no restart."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path

from pipelines.errors import BrokenCheckpoint
from pipelines.weight_file import WeightFile

_SUFFIX = ".safetensors"


class AuxiliaryKind(StrEnum):
    """What a file is for; the value is its folder's name inside the data folder."""

    LORA = "loras"
    #: Textual inversions.
    EMBEDDING = "embeddings"
    VAE = "vaes"
    UPSCALER = "upscalers"
    IP_ADAPTER = "ip_adapters"
    #: What IP-Adapters read pictures with: a folder each, of configuration and weights.
    IMAGE_ENCODER = "image_encoders"


#: Kind and name -> a file, or a folder; None when there is none of this name, or none that is complete.
FindAuxiliary = Callable[[AuxiliaryKind, str], Path | None]


def find_nothing(kind: AuxiliaryKind, name: str) -> None:
    """The look-up of a place without such weights."""


def find_auxiliary(data: Path, kind: AuxiliaryKind, name: str) -> Path | None:
    """As ``find_in`` the kind's folder."""
    return find_in(data / kind.value, name)


def find_in(folder: Path, name: str) -> Path | None:
    """NAME.safetensors, given with or without its suffix, or a folder NAME with config.json; see ``FindAuxiliary``.

    The folder is listed and names compared: a name can lead nowhere else.
    """
    wanted = name.removesuffix(_SUFFIX)
    for path in sorted(folder.glob("[!.]*"), reverse=True):
        if path.suffix == _SUFFIX and path.stem == wanted and _is_whole(path, name):
            return path
        if path.name == wanted and (path / "config.json").is_file():
            whole = [_is_whole(file, name) for file in path.glob(f"*{_SUFFIX}")]
            if whole and all(whole):
                return path
    return None


def _is_whole(path: Path, name: str) -> bool:
    """False for a file that is still written."""
    try:
        WeightFile.open(path, name)
    except BrokenCheckpoint:
        return False
    return True
