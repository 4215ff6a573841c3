"""LoRA files that are not what they should be: each is refused by its name, and none ends a request as our fault."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from pipelines.errors import InvalidRequest
from pipelines.lora_file import read_lora

DOWN, UP = "unet.conv_in.lora_A.weight", "unet.conv_in.lora_B.weight"
PAIR = {DOWN: torch.ones(4, 8), UP: torch.ones(6, 4)}
UNSOUND = "LoRA mine cannot be read: it is no sound .safetensors file"


def refusal(path: Path) -> str:
    with pytest.raises(InvalidRequest) as caught:
        read_lora(path, "mine")
    assert caught.value.field == "loras"
    return str(caught.value)


@pytest.mark.parametrize(
    "tensors",
    [
        {**PAIR, "unet.conv_in.alpha": torch.ones(2)},
        {**PAIR, "unet.conv_in.alpha": torch.ones(0)},
        {**PAIR, DOWN: torch.tensor(1.0)},
        {**PAIR, UP: torch.tensor(1.0)},
        {**PAIR, DOWN: torch.ones(0, 8)},
        {**PAIR, UP: torch.ones(6, 5)},
    ],
)
def test_shapes_that_make_no_pair(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    save_file(tensors, tmp_path / "mine.safetensors")
    assert refusal(tmp_path / "mine.safetensors") == "LoRA mine is damaged: the shapes of conv_in do not match"


@pytest.mark.parametrize(
    "options",
    [
        {"unet.lora_alpha": [1]},
        {"unet.lora_alpha": "much"},
        {"unet.alpha_pattern": [1]},
        {"unet.alpha_pattern": {"conv_in": None}},
    ],
)
def test_configurations_without_a_proper_alpha(tmp_path: Path, options: dict[str, object]) -> None:
    save_file(PAIR, tmp_path / "mine.safetensors", {"lora_adapter_metadata": json.dumps(options)})
    expected = "LoRA mine is damaged: its configuration has no proper alpha"
    assert refusal(tmp_path / "mine.safetensors") == expected


@pytest.mark.parametrize(
    "header",
    [
        b"[" * 100_000,
        b'{"a":{"dtype":"F32","shape":[true],"data_offsets":[0,4]}}',
        # What safetensors itself refuses, and nobody before.
        b'{"__metadata__":{"a":5},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        b'{"\\ud800.lora_down.weight":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}',
    ],
    ids=["nested", "bool as size", "number in the metadata", "half a letter"],
)
def test_headers_that_no_writer_makes(tmp_path: Path, header: bytes) -> None:
    path = tmp_path / "mine.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    assert refusal(path) == UNSOUND


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "mine.safetensors")
    assert refusal(tmp_path / "mine.safetensors") == UNSOUND
