"""VAEs beside a model's own: found, read in every layout, refused, shared and let go."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pipelines import demo, vaes
from pipelines.auxiliary import find_auxiliary
from pipelines.base import Pixels, Row
from pipelines.demo.vae import swapped
from pipelines.errors import InvalidRequest, NonFinite
from pipelines.extras import Extras
from pipelines.host import Host
from pipelines.images import Posterior
from pipelines.model import ModelSpec, Offload
from pipelines.request import ImageRequest
from pipelines.sd15 import StableDiffusion15
from pipelines.shared import SharedComponents
from pipelines.vae import Vae
from pipelines.vaes import dtype_of
from tests import originals

SIDE = 64
RED = np.full((SIDE, SIDE, 3), (220, 30, 60), dtype=np.uint8)
WEIGHTS = "diffusion_pytorch_model.safetensors"


def read_red(name: str) -> Pixels:
    return RED


def load(
    data: Path,
    folder: Path,
    *,
    shared: SharedComponents | None = None,
    extras: Extras | None = None,
    **spec: Any,
) -> StableDiffusion15:
    host = Host(
        device=torch.device("cpu"),
        slots=8,
        read_input=read_red,
        find_auxiliary=partial(find_auxiliary, data),
        shared=shared,
        extras=extras or Extras(),
    )
    return StableDiffusion15.load(ModelSpec(id="sd15", family="sd15", folder=folder, **spec), host)


def wish(vae: str | None, **changes: Any) -> ImageRequest:
    values = {"model": "sd15", "prompt": "a red cat", "width": SIDE, "height": SIDE, "steps": 2, "guidance": 1.0}
    return ImageRequest(**{**values, "seed": 3, "vae": vae, **changes})


def copied(vae: str | None) -> ImageRequest:
    """Starts from the red picture and hardly changes it."""
    return wish(vae, image="red", steps=50, strength=0.02)


def entered(pipeline: StableDiffusion15, *requests: ImageRequest) -> list[Row]:
    rows: list[Row] = []
    for prepared in pipeline.prepare(requests):
        assert isinstance(prepared, list), prepared
        rows += prepared
    for row in rows:
        pipeline.enter(row)
    return rows


def drawn(pipeline: StableDiffusion15, *requests: ImageRequest) -> list[Pixels]:
    return finished(pipeline, entered(pipeline, *requests))


def finished(pipeline: StableDiffusion15, rows: list[Row]) -> list[Pixels]:
    while moving := [row for row in rows if row.remaining]:
        pipeline.step(moving)
    results = pipeline.finish(rows)
    for row in rows:
        pipeline.leave(row)
    assert all(isinstance(one, np.ndarray) for one in results), results
    return [one for one in results if isinstance(one, np.ndarray)]


def refused(pipeline: StableDiffusion15, name: str) -> str:
    (error,) = pipeline.prepare([wish(name)])
    assert isinstance(error, InvalidRequest), error
    assert error.field == "vae"
    return str(error)


@pytest.fixture
def folder(sd15_folder: Path) -> Path:
    return sd15_folder


@pytest.fixture
def data(folder: Path, tmp_path: Path) -> Path:
    """With the VAE ``swapped``, in a folder."""
    swapped(folder, tmp_path / "vaes" / "swapped")
    return tmp_path


@pytest.fixture
def pipeline(data: Path, folder: Path) -> StableDiffusion15:
    return load(data, folder)


def as_ldm(prefix: str) -> Callable[[Path, Path], None]:
    def write(source: Path, file: Path) -> None:
        parent = file.parent / "source"
        shutil.copytree(source, parent / "vae")
        extra = {} if prefix else {"loss.logvar": torch.zeros(1), "model_ema.decay": torch.ones(1)}
        names = {prefix + name: tensor for name, tensor in originals.vae(parent).items()}
        originals.write(file, names | extra)
        shutil.rmtree(parent)

    return write


def as_diffusers(source: Path, file: Path) -> None:
    shutil.copy(source / WEIGHTS, file)


@pytest.mark.parametrize("write", [as_ldm(""), as_ldm("first_stage_model."), as_ldm("vae."), as_diffusers])
def test_a_file_in_any_layout_is_the_folders_vae(
    data: Path, pipeline: StableDiffusion15, write: Callable[[Path, Path], None]
) -> None:
    write(data / "vaes" / "swapped", data / "vaes" / "one.safetensors")
    for name in ("one", "one.safetensors"):
        found = pipeline.vaes.get(name).module.state_dict()
        expected = load_file(data / "vaes" / "swapped" / WEIGHTS)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in expected)
    # A file says nothing of its scale: the model's own holds.
    assert pipeline.vaes.get("one").module.config.scaling_factor == pipeline.vaes.own.module.config.scaling_factor


def test_a_picture_is_encoded_and_decoded_by_the_rows_own_vae(pipeline: StableDiffusion15) -> None:
    # Encoded by the one and decoded by the other, red would be blue.
    rows = entered(pipeline, copied(None), copied("swapped"), copied(None))
    assert len({row.lane for row in rows}) == 1
    pictures = finished(pipeline, rows)
    for picture in pictures:
        assert np.abs(picture.mean(axis=(0, 1)) - RED[0, 0]).max() < 12
    assert np.array_equal(pictures[0], pictures[2])


def test_a_picture_is_encoded_once_for_each_vae(pipeline: StableDiffusion15, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Vae] = []
    real = Vae.encode

    def encode(vae: Vae, image: torch.Tensor) -> Posterior:
        seen.append(vae)
        return real(vae, image)

    monkeypatch.setattr(Vae, "encode", encode)
    drawn(pipeline, copied(None), copied("swapped"), copied("swapped"), copied(None))
    assert seen == [pipeline.vaes.own, pipeline.vaes.get("swapped")]


def test_a_file_that_changes_is_read_again(data: Path, pipeline: StableDiffusion15) -> None:
    first = pipeline.vaes.get("swapped")
    assert pipeline.vaes.get("swapped") is first
    file = data / "vaes" / "swapped" / WEIGHTS
    save_file({name: tensor.clone() for name, tensor in load_file(file).items()} | {"x": torch.zeros(1)}, file)
    assert pipeline.vaes.get("swapped").key != first.key


def test_a_vae_that_made_room_for_another_still_serves_its_rows(
    data: Path, pipeline: StableDiffusion15, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(data / "vaes" / "swapped", data / "vaes" / "other")
    expected = drawn(pipeline, wish("swapped"))
    monkeypatch.setattr(pipeline.vaes._kept, "_max_bytes", 1)
    rows = entered(pipeline, wish("swapped"))
    before = pipeline.vaes.get("swapped")
    assert pipeline.vaes.get("other") is not before
    assert pipeline.vaes.get("swapped") is not before
    assert np.array_equal(finished(pipeline, rows)[0], expected[0])


@pytest.mark.parametrize("offload", [Offload.ENCODERS, Offload.MODEL])
def test_a_model_whose_parts_take_turns_draws_the_same(data: Path, folder: Path, offload: Offload) -> None:
    requests = [wish("swapped"), copied("swapped"), wish(None)]
    expected = drawn(load(data, folder), *requests)
    result = drawn(load(data, folder, offload=offload), *requests)
    assert all(np.array_equal(*pair) for pair in zip(result, expected, strict=True))


def test_models_of_different_folders_share_one_file(data: Path, folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    shutil.copy(data / "vaes" / "swapped" / WEIGHTS, data / "vaes" / "one.safetensors")
    shared = SharedComponents()
    first, second = load(data, folder, shared=shared), load(data, other, shared=shared)
    for name in ("one", "swapped"):
        assert first.vaes.get(name).module is second.vaes.get(name).module
    assert first.vaes.own.module is not second.vaes.own.module


def test_another_kind_of_vae_is_refused_with_its_figures(data: Path, folder: Path, demo_folder: Path) -> None:
    flux = demo.ensure("flux", demo_folder) / "vae"
    shutil.copytree(flux, data / "vaes" / "sixteen")
    shutil.copy(flux / WEIGHTS, data / "vaes" / "file.safetensors")
    pipeline = load(data, folder)
    for name in ("sixteen", "file"):
        assert refused(pipeline, name) == f"VAE {name}: it has 16 latent channels, not the 4 of sd15"


def edited(**changes: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return edit


def lose_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    del tensors["decoder.conv_out.weight"]
    save_file(tensors, folder / WEIGHTS)


def bring_code(folder: Path) -> None:
    (folder / "vae.py").write_text("raise SystemExit")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (edited(_class_name="AutoencoderTiny"), "swapped/config.json is of a AutoencoderTiny, not AutoencoderKL"),
        (edited(out_channels=4), "it has 4 output channels, not the 3 of sd15"),
        (edited(block_out_channels=[8, 8]), "it has 2 levels, not the 4 of sd15"),
        (edited(block_out_channels=8), "its block_out_channels are no list"),
        (edited(scaling_factor=0), "its scaling_factor is 0, no number above 0"),
        (edited(scaling_factor="x"), "its scaling_factor is x, no number above 0"),
        (edited(latents_mean=[0.0] * 4), "it has latents_mean, which is not supported"),
        (edited(auto_map={}), "swapped/config.json has auto_map, code of its own, which is never run"),
        (lose_a_tensor, "swapped lacks decoder.conv_out.weight"),
        (bring_code, "swapped brings code, vae.py, which is never run"),
    ],
)
def test_a_folder_that_cannot_be_used_is_refused_by_name(
    data: Path, pipeline: StableDiffusion15, damage: Callable[[Path], None], said: str
) -> None:
    damage(data / "vaes" / "swapped")
    assert refused(pipeline, "swapped") == f"VAE swapped: {said}"


def test_a_file_without_a_vae_is_refused_by_name(data: Path, pipeline: StableDiffusion15) -> None:
    save_file({"x": torch.zeros(1)}, data / "vaes" / "none.safetensors")
    assert refused(pipeline, "none") == "VAE none: none.safetensors holds no vae in a known layout"


@pytest.mark.parametrize("name", ["missing", "../vaes/swapped", "half"])
def test_what_is_not_there_whole_is_not_found(data: Path, pipeline: StableDiffusion15, name: str) -> None:
    whole = (data / "vaes" / "swapped" / WEIGHTS).read_bytes()
    (data / "vaes" / "half.safetensors").write_bytes(whole[:-1])
    assert refused(pipeline, name) == f"VAE not found: {name}"


def test_other_requests_of_the_batch_are_drawn(pipeline: StableDiffusion15) -> None:
    first, second = pipeline.prepare([wish("missing"), wish("swapped")])
    assert isinstance(first, InvalidRequest)
    assert isinstance(second, list)


@pytest.mark.parametrize(
    ("config", "dtype", "upcasts", "expected"),
    [
        ({}, torch.float16, True, torch.float32),
        ({"force_upcast": False}, torch.float16, True, torch.float16),
        ({}, torch.float16, False, torch.float16),
        ({}, torch.bfloat16, True, torch.bfloat16),
        ({}, torch.float32, True, torch.float32),
    ],
)
def test_only_sdxls_vaes_that_overflow_are_in_more_than_half_precision(
    config: dict[str, bool], dtype: torch.dtype, upcasts: bool, expected: torch.dtype
) -> None:
    assert dtype_of(config, dtype, upcasts) is expected


def test_a_published_vae_fits_several_times_into_what_is_kept() -> None:
    assert vaes.KEPT_BYTES > 4 * 2 * 83_653_863


def test_a_vae_that_decodes_to_no_numbers_fails_the_row_instead_of_drawing_black(
    data: Path, pipeline: StableDiffusion15
) -> None:
    file = data / "vaes" / "swapped" / WEIGHTS
    spoilt = {**load_file(file), "decoder.conv_out.bias": torch.full((3,), float("nan"))}
    save_file(spoilt, file, {"format": "pt"})
    prepared = pipeline.prepare([wish("swapped"), wish(None)])
    row, other = (one for rows in prepared if isinstance(rows, list) for one in rows)
    for one in (row, other):
        pipeline.enter(one)
    while row.remaining:
        pipeline.step([row, other])
    failed, sound = pipeline.finish([row, other])
    for one in (row, other):
        pipeline.leave(one)
    assert isinstance(failed, NonFinite) and isinstance(sound, np.ndarray)


def test_other_vaes_count_beside_the_models_and_their_own_do_not(data: Path, sd15_folder: Path) -> None:
    extras = Extras()
    pipeline = load(data, sd15_folder, extras=extras)
    assert extras.bytes() == 0
    vae = pipeline.vaes.get("swapped")
    assert extras.bytes() == vae.bytes
    extras.release()
    assert extras.bytes() == 0
    assert pipeline.vaes.get("swapped") is not vae
