"""The demo checkpoints: real formats, same bytes every time, and pictures in which every parameter shows."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from pipelines.demo import BUILDERS, ensure, vae

#: diffusers' Euler schedulers make numpy arrays of tensors in a way that numpy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(scope="module")
def demo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def sd15(demo_folder: Path) -> Path:
    return ensure("sd15", demo_folder)


@pytest.fixture(scope="module")
def pipeline(sd15: Path) -> Iterator[Any]:
    from diffusers import StableDiffusionPipeline

    # diffusers and transformers log to stderr what pytest would otherwise attribute to the first test.
    logging.disable(logging.WARNING)
    pipe = StableDiffusionPipeline.from_pretrained(sd15, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    yield pipe
    logging.disable(logging.NOTSET)


LEFT, RIGHT = slice(0, 32), slice(32, 64)


def stock(folder: Path) -> Any:
    """The pipeline that model_index.json names, as a user loads it."""
    import diffusers

    name = json.loads((folder / "model_index.json").read_text())["_class_name"]
    pipe = getattr(diffusers, name).from_pretrained(folder, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    pipe.safety_checker = None
    return pipe


def picture(turned: int = 0) -> Image.Image:
    """64 x 64, sixteen squares of different colours."""
    levels = np.random.default_rng(0).integers(40, 215, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(np.rot90(levels, turned).repeat(16, 0).repeat(16, 1))


def mask(half: slice) -> Image.Image:
    """White, which is to be redrawn, in one half."""
    levels = np.zeros((64, 64), dtype=np.uint8)
    levels[:, half] = 255
    return Image.fromarray(levels)


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


TEXT: dict[str, dict[str, Any]] = {
    "prompt": {"prompt": "a photo of a dog"},
    "seed": {"seed": 2},
    "steps": {"num_inference_steps": 5},
}
GUIDED: dict[str, dict[str, Any]] = {
    **TEXT,
    "negative prompt": {"negative_prompt": "blurry"},
    "guidance": {"guidance_scale": 7.0},
}
SDXL: dict[str, dict[str, Any]] = {
    "second prompt": {"prompt_2": "a photo of a dog"},
    "original size": {"original_size": (640, 64)},
    "target size": {"target_size": (512, 512)},
    "crop": {"crops_coords_top_left": (32, 100)},
}
INPAINT: dict[str, dict[str, Any]] = {
    "mask": {"mask_image": mask(RIGHT)},
    "picture": {"image": picture(turned=1)},
    "strength": {"strength": 0.6},
}
FLUX: dict[str, dict[str, Any]] = {
    **TEXT,
    "second prompt": {"prompt_2": "a photo of a dog"},
    "text length": {"max_sequence_length": 256},
    "true guidance": {"true_cfg_scale": 3.0, "negative_prompt": "ugly"},
}
TO_REDRAW = {"image": picture(), "mask_image": mask(LEFT)}
GUIDANCE = {"guidance": {"guidance_scale": 7.0}}

#: Demo -> stock pipeline, what every picture of it is drawn with, and changes each of which must show.
DEMOS: dict[str, tuple[str, dict[str, Any], dict[str, dict[str, Any]]]] = {
    "sd15-inpaint": ("StableDiffusionInpaintPipeline", TO_REDRAW, GUIDED | INPAINT),
    "sd15-lcm": ("StableDiffusionPipeline", {}, TEXT | {"guidance": {"guidance_scale": 8.5}}),
    "sdxl": ("StableDiffusionXLPipeline", {}, GUIDED | SDXL),
    "sdxl-inpaint": ("StableDiffusionXLInpaintPipeline", TO_REDRAW, GUIDED | SDXL | INPAINT),
    "sdxl-turbo": ("StableDiffusionXLPipeline", {"guidance_scale": 0.0, "num_inference_steps": 1}, TEXT),
    "sdxl-lcm": ("StableDiffusionXLPipeline", {"guidance_scale": 1.0}, TEXT),
    "flux": ("FluxPipeline", {"guidance_scale": 3.5}, FLUX | GUIDANCE),
    "flux-schnell": ("FluxPipeline", {"guidance_scale": 0.0}, FLUX),
    "flux-fill": ("FluxFillPipeline", {**TO_REDRAW, "guidance_scale": 30.0}, TEXT | GUIDANCE | INPAINT),
}


@pytest.mark.parametrize("name", DEMOS)
def test_every_parameter_of_every_demo_shows_in_stock_pictures(name: str, demo_folder: Path) -> None:
    expected, always, changes = DEMOS[name]
    pipe = stock(ensure(name, demo_folder))
    assert type(pipe).__name__ == expected
    usual = draw(pipe, **always)
    moved = {
        change: int(np.abs(draw(pipe, **{**always, **values}) - usual).max()) for change, values in changes.items()
    }
    assert {change: by for change, by in moved.items() if by < 2} == {}
    assert usual.std() > 20
    assert np.mean((usual == 0) | (usual == 255)) < 0.35


@pytest.mark.parametrize("name", ["sd15-inpaint", "sdxl-inpaint", "flux-fill"])
def test_inpainting_networks_keep_what_is_not_masked(name: str, demo_folder: Path) -> None:
    pipe = stock(ensure(name, demo_folder))
    always: dict[str, Any] = {**TO_REDRAW, "num_inference_steps": 10}
    drawn, given = draw(pipe, **always), np.asarray(picture(), dtype=np.int16)
    kept, redrawn = (np.corrcoef(drawn[:, half].flat, given[:, half].flat)[0, 1] for half in (RIGHT, LEFT))
    assert kept > 0.45
    assert abs(redrawn) < 0.25


def test_together_the_demos_are_two_builds_of_the_same_bytes(demo_folder: Path, tmp_path: Path) -> None:
    for name in ("sdxl-lcm", "flux", "sd15-lcm"):
        assert hashes(ensure(name, tmp_path)) == hashes(ensure(name, demo_folder))


def test_networks_have_the_shapes_of_the_published_ones(demo_folder: Path) -> None:
    def config(name: str, part: str) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((ensure(name, demo_folder) / part / "config.json").read_text())
        return content

    assert [config(name, "unet")["in_channels"] for name in ("sd15-inpaint", "sdxl", "sdxl-inpaint")] == [9, 4, 9]
    assert config("sd15-lcm", "unet")["time_cond_proj_dim"] == 256
    assert config("sdxl", "unet")["addition_embed_type"] == "text_time"
    assert config("sdxl", "vae")["force_upcast"] is True
    assert config("sdxl", "text_encoder_2")["num_hidden_layers"] >= 10
    assert config("sdxl", "text_encoder")["hidden_size"] != config("sdxl", "text_encoder_2")["hidden_size"]
    assert [config(f"flux{kind}", "transformer")["in_channels"] for kind in ("", "-schnell", "-fill")] == [64, 64, 384]
    assert [config(f"flux{kind}", "transformer")["guidance_embeds"] for kind in ("", "-schnell", "-fill")] == [
        True,
        False,
        True,
    ]
    assert (config("flux", "vae")["latent_channels"], config("flux", "vae")["shift_factor"]) == (16, 0.1159)


@pytest.mark.parametrize("name", ["sd15", "sdxl", "flux"])
def test_a_noisy_vae_shows_who_drew_from_its_posterior(name: str, demo_folder: Path, tmp_path: Path) -> None:
    from diffusers import AutoencoderKL

    folder = tmp_path / name
    shutil.copytree(ensure(name, demo_folder), folder)
    vae.noisy(folder)
    image = torch.zeros(1, 3, 64, 64)
    with torch.inference_mode():
        sure, unsure = (
            AutoencoderKL.from_pretrained(one, subfolder="vae", local_files_only=True).encode(image).latent_dist
            for one in (demo_folder / name, folder)
        )
    assert torch.equal(sure.mean, unsure.mean)
    assert sure.logvar.max() == -30
    assert (unsure.logvar + 2).abs().max() < 1e-3


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

    monkeypatch.setattr("pipelines.demo.sd15.build", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ensure("sd15", tmp_path)
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


def test_every_builder_is_tested() -> None:
    # Florence-2 draws nothing: test_florence2.py.
    assert set(BUILDERS) == {"sd15", "florence2", *DEMOS, "ip-adapters"}
