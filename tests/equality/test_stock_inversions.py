"""Textual inversions against stock diffusers' ``load_textual_inversion``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.auxiliary import find_in
from pipelines.base import Pixels
from pipelines.request import ImageRequest, Task
from tests.equality.stock import CLASSES, difference, draw, load_ours

#: Family -> what a file for it holds: tensor -> stock's text encoder and tokenizer.
LAYOUTS = {
    "sd15": {"emb_params": ("text_encoder", "tokenizer")},
    "sdxl": {"clip_l": ("text_encoder", "tokenizer"), "clip_g": ("text_encoder_2", "tokenizer_2")},
}


@pytest.fixture(scope="module", params=["sd15", "sdxl"])
def family(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def stock(family: str, demo_folder: Path) -> Any:
    import diffusers

    from pipelines import demo
    from pipelines.quiet import quiet_libraries

    quiet_libraries()
    extra = {"safety_checker": None} if family == "sd15" else {}
    cls = getattr(diffusers, CLASSES[family][Task.TEXT2IMG])
    pipe = cls.from_pretrained(str(demo.ensure(family, demo_folder)), local_files_only=True, **extra)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def folder(family: str, stock: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ "toy" of three vectors and "gloom" of one, loaded by stock under their names."""
    import torch
    from safetensors.torch import load_file, save_file

    place = tmp_path_factory.mktemp("embeddings")
    source = torch.Generator().manual_seed(1)
    for word, count in (("toy", 3), ("gloom", 1)):
        widths = {key: getattr(stock, encoder).config.hidden_size for key, (encoder, _) in LAYOUTS[family].items()}
        vectors = {key: torch.randn(count, width, generator=source) for key, width in widths.items()}
        save_file(vectors, place / f"{word}.safetensors")
        for key, (encoder, tokenizer) in LAYOUTS[family].items():
            stock.load_textual_inversion(
                load_file(place / f"{word}.safetensors")[key],
                token=word,
                text_encoder=getattr(stock, encoder),
                tokenizer=getattr(stock, tokenizer),
            )
    return place


def wish(number: int, family: str, prompt: str, negative: str, *names: str) -> ImageRequest:
    return ImageRequest(
        model=family,
        prompt=prompt,
        negative_prompt=negative,
        width=64,
        height=64,
        steps=4 + number,
        guidance=4.0,
        seed=number,
        embeddings=names,
    )


def stocks(pipe: Any, request: ImageRequest) -> Pixels:
    import torch

    images = pipe(
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        num_inference_steps=request.steps,
        guidance_scale=request.guidance,
        generator=[torch.Generator("cpu").manual_seed(request.seed)],
        width=request.width,
        height=request.height,
        output_type="np",
    ).images
    pixels: Pixels = (images[0] * 255).round().astype(np.uint8)
    return pixels


@pytest.mark.filterwarnings("ignore:__array")
def test_rows_with_and_without_inversions_are_what_stock_draws(
    family: str, stock: Any, folder: Path, demo_folder: Path
) -> None:
    ours = load_ours(family, demo_folder / family, find_auxiliary=lambda _, name: find_in(folder, name))
    requests = [
        wish(0, family, "a red cat", "blurry"),
        wish(1, family, "a toy cat", "blurry", "toy"),
        wish(2, family, "a cat, toy", "gloom, a dog", "gloom", "toy"),
        wish(3, family, "a bright cat", "gloom", "gloom"),
    ]
    for request, picture in zip(requests, draw(ours, requests), strict=True):
        assert difference(picture, stocks(stock, request)) <= 1, request
    (without,) = draw(ours, [wish(1, family, "a toy cat", "blurry")])
    assert difference(without, draw(ours, requests[1:2])[0]) > 1


def test_an_inversion_that_no_text_names_is_a_warning(family: str, folder: Path, demo_folder: Path) -> None:
    ours = load_ours(family, demo_folder / family, find_auxiliary=lambda _, name: find_in(folder, name))
    (rows,) = ours.prepare([wish(4, family, "a toy", "", "toy", "gloom")])
    assert isinstance(rows, list)
    (row,) = rows
    assert row.warnings == ("embedding gloom was not used: neither prompt nor negative_prompt has its name.",)
    (refused,) = ours.prepare([wish(4, family, "a toy", "", "nothing")])
    assert str(refused) == "Embedding not found: nothing"
