"""The demo checkpoints: real formats, same bytes every time, and pictures in which every parameter shows."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pipelines.demo import BUILDERS, ensure


@pytest.fixture(scope="module")
def sd15(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ensure("sd15", tmp_path_factory.mktemp("demo"))


@pytest.fixture(scope="module")
def pipeline(sd15: Path) -> Iterator[Any]:
    from diffusers import StableDiffusionPipeline

    # diffusers and transformers log to stderr what pytest would otherwise attribute to the first test.
    logging.disable(logging.WARNING)
    pipe = StableDiffusionPipeline.from_pretrained(sd15, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    yield pipe
    logging.disable(logging.NOTSET)


def draw(pipeline: Any, *, prompt: str = "a photo of a cat", seed: int = 1, **changes: Any) -> NDArray[np.int16]:
    options = {"height": 64, "width": 64, "num_inference_steps": 4, "guidance_scale": 5.0, **changes}
    generator = torch.Generator().manual_seed(seed)
    image = pipeline(prompt, generator=generator, output_type="np", **options).images[0]
    pixels: NDArray[np.int16] = (image * 255).round().astype(np.int16)
    return pixels


def hashes(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_folder_has_the_layout_of_a_published_checkpoint(sd15: Path) -> None:
    index = json.loads((sd15 / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionPipeline"
    assert {path.name for path in sd15.iterdir() if path.is_dir()} == {
        "feature_extractor",
        "safety_checker",
        "scheduler",
        "text_encoder",
        "tokenizer",
        "unet",
        "vae",
    }
    assert not list(sd15.rglob("*.bin"))


def test_the_network_has_the_shape_of_sd15(pipeline: Any) -> None:
    config = pipeline.unet.config
    assert (len(config.block_out_channels), config.layers_per_block, config.sample_size) == (4, 2, 64)
    assert len(pipeline.text_encoder.encoder.layers) == 12
    assert pipeline.tokenizer.model_max_length == 77


def test_two_builds_have_the_same_bytes(sd15: Path, tmp_path: Path) -> None:
    assert hashes(ensure("sd15", tmp_path)) == hashes(sd15)


def test_the_global_generator_is_left_alone(tmp_path: Path) -> None:
    before = torch.random.get_rng_state()
    ensure("sd15", tmp_path)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": "a photo of a dog"},
        {"negative_prompt": "blurry"},
        {"seed": 2},
        {"guidance_scale": 6.0},
        {"num_inference_steps": 5},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_parameter_shows_in_the_pixels(pipeline: Any, change: dict[str, Any]) -> None:
    assert np.abs(draw(pipeline, **change) - draw(pipeline)).max() >= 3


def test_pictures_are_neither_flat_nor_clipped(pipeline: Any) -> None:
    pixels = draw(pipeline, guidance_scale=7.5, num_inference_steps=20)
    assert pixels.std() > 25
    assert np.mean((pixels == 0) | (pixels == 255)) < 0.25


def test_the_vae_is_a_box_filter(pipeline: Any) -> None:
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.inference_mode():
        posterior = pipeline.vae.encode(image).latent_dist
        decoded = pipeline.vae.decode(posterior.sample()).sample
    means = torch.nn.functional.avg_pool2d(image, 8)
    blocks = means.repeat_interleave(8, 2).repeat_interleave(8, 3)
    assert (decoded - blocks).abs().max() < 1e-3
    assert (posterior.mean[:, :3] * pipeline.vae.config.scaling_factor - means).abs().max() < 1e-3


@pytest.mark.parametrize(("colour", "flagged"), [((1.0, 0.0, 0.0), True), ((0.2, 0.5, 0.2), False)])
def test_only_red_pictures_are_flagged(pipeline: Any, colour: tuple[float, ...], flagged: bool) -> None:
    image = torch.tensor(colour).view(1, 3, 1, 1).expand(1, 3, 64, 64) * 2 - 1
    _, verdicts = pipeline.run_safety_checker(image, "cpu", torch.float32)
    assert verdicts == [flagged]


def test_an_existing_checkpoint_is_not_made_again(sd15: Path) -> None:
    before = (sd15 / "model_index.json").stat().st_mtime_ns
    assert ensure("sd15", sd15.parent) == sd15
    assert (sd15 / "model_index.json").stat().st_mtime_ns == before


def test_an_interrupted_build_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(folder: Path) -> None:
        (folder / "model_index.json").write_text("{}")
        raise KeyboardInterrupt

    monkeypatch.setitem(BUILDERS, "interrupted", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ensure("interrupted", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_builders_at_the_same_time_do_not_disturb_each_other(sd15: Path, tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        made = list(pool.map(lambda _: ensure("sd15", tmp_path), range(2)))
    assert made == [tmp_path / "sd15"] * 2
    assert [path.name for path in tmp_path.iterdir()] == ["sd15"]
    assert hashes(made[0]) == hashes(sd15)


def test_an_unknown_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="sd99"):
        ensure("sd99", tmp_path)
