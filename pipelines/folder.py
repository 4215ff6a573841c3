"""Which files of a component's folder hold its weights."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from pipelines.errors import BrokenCheckpoint
from pipelines.weight_file import PICKLED

#: diffusers' name and transformers' name of the file, or of the first part of its shards' names.
STEMS = ("diffusion_pytorch_model", "model")
#: Tried in this order where a folder holds none without a variant.
VARIANTS = (None, "fp16", "bf16", "fp32", "non_ema")


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """Files that make up one component."""

    files: tuple[Path, ...]
    #: What the libraries call ``variant``: the word before ``.safetensors``.
    variant: str | None


def find_weights(folder: Path, model: str) -> Found | None:
    """The component's weights, the ones without a variant first; None where there are none.

    Raises BrokenCheckpoint where there are only pickles, or where an index names a shard that is not there.
    """
    for variant in VARIANTS:
        dotted = "" if variant is None else f".{variant}"
        for stem in STEMS:
            file = folder / f"{stem}{dotted}.safetensors"
            if file.is_file():
                return Found(files=(file,), variant=variant)
            for name in (f"{stem}.safetensors.index{dotted}.json", f"{stem}{dotted}.safetensors.index.json"):
                if (folder / name).is_file():
                    return Found(files=_shards(folder, name, model), variant=variant)
    pickled = next((file for file in sorted(folder.glob("*")) if file.name.endswith(PICKLED)), None)
    if pickled is not None:
        raise BrokenCheckpoint(
            f"model {model}: {folder.name} holds its weights as {pickled.name}, a pickle, which can run code and is "
            f"never opened: convert it to .safetensors"
        )
    return None


def _shards(folder: Path, name: str, model: str) -> tuple[Path, ...]:
    where = f"model {model}: {folder.name}/{name}"
    try:
        shards = set(json.loads((folder / name).read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BrokenCheckpoint(f"{where} cannot be read as an index of shards") from error
    for shard in sorted(map(str, shards)):
        if "/" in shard or "\\" in shard or not (folder / shard).is_file():
            raise BrokenCheckpoint(f"{where} names {Path(shard).name}, which is missing")
    return tuple(folder / shard for shard in sorted(shards))
