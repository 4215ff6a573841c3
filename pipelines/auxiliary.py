"""The operator's weights beside the models: looked up when they are asked for, so that new ones need no restart."""

from __future__ import annotations

import os
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


def is_whole(path: Path) -> bool:
    """False for a file that is still written, or is no safetensors file."""
    try:
        WeightFile.open(path, path.stem)
    except BrokenCheckpoint:
        return False
    return True


def find_in(folder: Path, name: str, *, is_whole: Callable[[Path], bool] = is_whole) -> Path | None:
    """NAME.safetensors, given with or without its suffix, or a folder NAME with config.json; see ``FindAuxiliary``.

    The folder is listed and names compared: a name can lead nowhere else. Hidden files are nobody's.
    """
    wanted = name.removesuffix(_SUFFIX)
    file = f"{wanted}{_SUFFIX}"
    if not wanted or wanted.startswith("."):
        return None
    try:
        # Names alone: it is done per request, and folders hold thousands of files.
        with os.scandir(folder) as entries:
            there = {file, wanted}.intersection(one.name for one in entries)
    except OSError:
        return None
    if file in there and is_whole(folder / file):
        return folder / file
    if wanted in there and (folder / wanted / "config.json").is_file():
        whole = [is_whole(one) for one in (folder / wanted).glob(f"*{_SUFFIX}")]
        if whole and all(whole):
            return folder / wanted
    return None
