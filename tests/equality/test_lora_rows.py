"""Rows with LoRAs share forwards with rows without, and each keeps its picture."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipelines.base import Row
from pipelines.errors import InvalidRequest
from pipelines.request import ImageRequest
from tests.equality.stock import difference, draw

#: Which layers a file changes; in all families some attention has this one.
LAYER = ".to_q"
#: Family -> its folder of LoRAs.
NAMES = {"StableDiffusion15": "sd15", "StableDiffusionXL": "sdxl", "Flux": "flux"}
STACKS: tuple[tuple[tuple[str, float], ...], ...] = (
    (),
    (("small", 1.0),),
    (("small", 0.5), ("large", -1.0)),
    (("large", 0.0),),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("loras")


@pytest.fixture(scope="module", params=["sd15", "sdxl", "flux"])
def pipeline(request: pytest.FixtureRequest, demo_folder: Path, folder: Path) -> Any:
    import importlib

    import torch

    from pipelines import demo
    from pipelines.auxiliary import find_in
    from pipelines.host import Host
    from pipelines.model import ModelSpec
    from pipelines.registry import FAMILIES

    name = request.param
    spec = ModelSpec(id=name, family=name, folder=demo.ensure(name, demo_folder))
    module, _, cls = FAMILIES[name].partition(":")
    host = Host(device=torch.device("cpu"), slots=16, find_auxiliary=lambda _, one: find_in(folder / name, one))
    return getattr(importlib.import_module(module), cls).load(spec, host)


@pytest.fixture(scope="module", autouse=True)
def files(pipeline: Any, folder: Path) -> None:
    import torch
    from safetensors.torch import save_file

    name = NAMES[type(pipeline).__name__]
    (folder / name).mkdir()
    prefix = "transformer" if name == "flux" else "unet"
    source = torch.Generator().manual_seed(4)
    for file, rank in (("small", 4), ("large", 24)):
        tensors = {}
        for layer, module in pipeline.network.named_modules():
            if layer.endswith(LAYER):
                tensors[f"{prefix}.{layer}.lora_A.weight"] = torch.randn(rank, module.in_features, generator=source)
                tensors[f"{prefix}.{layer}.lora_B.weight"] = torch.randn(module.out_features, rank, generator=source)
        save_file(tensors, folder / name / f"{file}.safetensors")


@pytest.fixture(scope="module")
def everywhere(pipeline: Any, files: None, folder: Path) -> None:
    """``thin`` and ``wide`` change every linear layer."""
    import torch
    from safetensors.torch import save_file

    source = torch.Generator().manual_seed(4)
    for file, rank in (("thin", 8), ("wide", 100)):
        tensors = {}
        for layer, module in pipeline.network.named_modules():
            if isinstance(module, torch.nn.Linear):
                tensors[f"{layer}.lora_A.weight"] = 0.1 * torch.randn(rank, module.in_features, generator=source)
                tensors[f"{layer}.lora_B.weight"] = 0.1 * torch.randn(module.out_features, rank, generator=source)
        save_file(tensors, folder / NAMES[type(pipeline).__name__] / f"{file}.safetensors")


def wish(number: int, **changes: Any) -> ImageRequest:
    return ImageRequest(
        **{
            "model": "any",
            "prompt": f"{number} red cats",
            "width": 64,
            "height": 64,
            "steps": 4 + number % 3,
            "guidance": 1.0 + 3 * (number % 2),
            "seed": number,
            **changes,
        }
    )


def test_mixed_rows_draw_what_they_draw_alone(pipeline: Any) -> None:
    requests = [wish(number, loras=stack) for number, stack in enumerate(STACKS)]
    together = draw(pipeline, requests)
    for request, picture in zip(requests, together, strict=True):
        assert difference(picture, draw(pipeline, [request])[0]) <= 1
    plain = draw(pipeline, [replace(request, loras=()) for request in requests])
    # Not nearly, but to the bit; a strength of 0 is no LoRA.
    assert [difference(*pair) for pair in zip(together, plain, strict=True)][::3] == [0, 0]
    assert min(difference(*pair) for pair in zip(together[1:3], plain[1:3], strict=True)) > 1


def test_rows_give_their_slots_back(pipeline: Any) -> None:
    (rows,) = pipeline.prepare([wish(1, loras=STACKS[1], samples=2)])
    for row in rows:
        pipeline.enter(row)
    assert [row.lora for row in rows] == [rows[0].lora] * 2 != [0, 0]
    left: list[Row] = [*rows, *rows]
    for row in left:
        pipeline.leave(row)
    assert [row.lora for row in rows] == [0, 0]
    assert not pipeline.loras.bank.users


def test_an_unknown_lora_fails_its_request_alone(pipeline: Any) -> None:
    refused, rows = pipeline.prepare([wish(1, loras=(("nothing", 1.0),)), wish(2)])
    assert isinstance(refused, InvalidRequest) and str(refused) == "LoRA not found: nothing"
    assert len(rows) == 1


def test_a_reproducible_row_is_the_same_to_the_bit_whatever_was_laid_over_its_model_before(
    pipeline: Any, everywhere: None
) -> None:
    request = wish(1, loras=(("thin", 1.0),), reproducible=True)
    before = last_latents(pipeline, request)
    # Its rank is what all slots are padded to from now on.
    draw(pipeline, [wish(2, loras=(("wide", 1.0),))])
    assert (last_latents(pipeline, request) == before).all()


def last_latents(pipeline: Any, request: ImageRequest) -> Any:
    [[row]] = pipeline.prepare([request])
    pipeline.enter(row)
    while row.remaining:
        pipeline.step([row])
    latents = pipeline.pools[row.lane].latents[row.slot, 0].clone()
    pipeline.leave(row)
    return latents
