"""One file in the original layout draws what its diffusers folder draws."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines import demo
from pipelines.request import Task
from tests import originals
from tests.equality.stock import FAMILY, Case, difference, draw, load_ours

WRITERS: dict[str, Callable[[Path, Path], object]] = {
    "sd15": originals.stable_diffusion,
    "sd15-inpaint": originals.stable_diffusion,
    "sdxl": originals.sdxl,
    "sdxl-inpaint": originals.sdxl,
    "flux": originals.flux,
    "flux-schnell": originals.flux,
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_single_file_draws_what_its_folder_draws(name: str, tmp_path: Path) -> None:
    folder = demo.ensure(name, tmp_path)
    file = tmp_path / "model.safetensors"
    WRITERS[name](folder, file)
    tasks = [Task.INPAINT] if name.endswith("inpaint") else list(Task)
    requests = [Case(number=number, checkpoint=name, task=task).request() for number, task in enumerate(tasks)]
    if FAMILY[name] == "flux":
        # The file holds the transformer alone, as published; texts and VAE are the folder's.
        skeleton: Any = folder
    else:
        skeleton = tmp_path / "skeleton"
        originals.skeleton(folder, skeleton)
    one = draw(load_ours(name, folder), requests)
    other = draw(load_ours(name, skeleton, file=file), requests)
    assert max(difference(*pair) for pair in zip(one, other, strict=True)) <= 1
