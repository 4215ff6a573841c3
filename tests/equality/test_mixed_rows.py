"""Rows of all tasks share forwards and keep their pictures; samplers without a working stock are themselves alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines import demo
from pipelines.base import Pixels
from pipelines.demo.vae import noisy
from pipelines.diffusion import DiffusionPipeline
from pipelines.request import ImageRequest, Sigmas, Task
from tests.equality.stock import Case, difference, draw, load_ours, mask

SAMPLERS = {
    "sd15": "EulerDiscrete PNDM HeunDiscrete DPMSolverMultistep EulerAncestralDiscrete UniPCMultistep DDIM LMSDiscrete",
    "sdxl": "EulerDiscrete DDPM KDPM2Discrete DPMSolverSinglestep EulerAncestralDiscrete UniPCMultistep LCM DDIM",
    "flux": "EulerDiscrete HeunDiscrete UniPCMultistep DPMSolverMultistep",
}
OWN = ("IPNDMScheduler", "KarrasVeScheduler", "ScoreSdeVeScheduler")


@pytest.fixture(scope="module")
def pipeline_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], DiffusionPipeline]:
    root = tmp_path_factory.mktemp("mixed")
    loaded: dict[str, DiffusionPipeline] = {}

    def load(name: str) -> DiffusionPipeline:
        if name not in loaded:
            folder = demo.ensure(name, root)
            noisy(folder)
            loaded[name] = load_ours(name, folder)
        return loaded[name]

    return load


def mixed(family: str) -> list[ImageRequest]:
    """Fifteen requests of all tasks, every value different from its neighbours'."""
    names = SAMPLERS[family].split()
    requests = []
    for number in range(15):
        case = Case(
            number=number,
            checkpoint=family,
            task=list(Task)[number % 3],
            scheduler=names[number % len(names)] + "Scheduler",
        )
        requests.append(replace(case.request(), steps=3 + number % 7, seed=number, guidance=1.0 + number / 2))
    return requests


def counted(pipeline: Any) -> tuple[list[int], Any]:
    network = pipeline.transformer if hasattr(pipeline, "transformer") else pipeline.unet
    forwards: list[int] = []
    return forwards, network.register_forward_pre_hook(lambda *_: forwards.append(1))


@pytest.mark.parametrize("family", ["sd15", "sdxl", "flux"])
def test_rows_of_all_tasks_share_one_lane_and_keep_their_pictures(
    family: str, pipeline_of: Callable[[str], DiffusionPipeline]
) -> None:
    pipeline = pipeline_of(family)
    requests = mixed(family)
    calls = [row.calls for rows in pipeline.prepare(requests) if isinstance(rows, list) for row in rows]
    forwards, hook = counted(pipeline)
    together = draw(pipeline, requests)
    hook.remove()
    assert len(forwards) == max(calls)
    alone = [draw(pipeline, [request])[0] for request in requests]
    assert max(difference(*pair) for pair in zip(together, alone, strict=True)) <= 1
    assert min(difference(together[0], other) for other in together[1:]) > 10


@pytest.mark.parametrize("task", list(Task))
@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_our_own_samplers_draw_the_same_alone_and_together(
    family: str, task: Task, pipeline_of: Callable[[str], DiffusionPipeline]
) -> None:
    requests = [
        replace(Case(number=number, checkpoint=family, task=task, scheduler=name).request(), steps=8 - number)
        for number, name in enumerate(OWN)
    ]
    pipeline = pipeline_of(family)
    together = draw(pipeline, requests)
    alone = [draw(pipeline, [request])[0] for request in requests]
    assert max(difference(*pair) for pair in zip(together, alone, strict=True)) <= 1
    assert all(picture.std() > 5 for picture in together)


@pytest.mark.parametrize("task", list(Task))
def test_ddim_inverse_is_ddim_and_says_so(task: Task, pipeline_of: Callable[[str], DiffusionPipeline]) -> None:
    pipeline = pipeline_of("sd15")
    ddim = Case(number=5, checkpoint="sd15", task=task, scheduler="DDIMScheduler").request()
    (rows,) = pipeline.prepare([replace(ddim, scheduler="DDIMInverseScheduler")])
    assert isinstance(rows, list)
    assert rows[0].scheduler == "DDIMScheduler"
    assert any("DDIM" in warning for warning in rows[0].warnings)
    for row in rows:
        pipeline.enter(row)
        while row.remaining:
            pipeline.step([row])
    (inverse,) = pipeline.finish(rows)
    for row in rows:
        pipeline.leave(row)
    assert isinstance(inverse, np.ndarray)
    assert difference(inverse, draw(pipeline, [ddim])[0]) == 0


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], DiffusionPipeline]:
    """Pipelines whose VAE is an exact 8 x 8 box filter."""
    root: Path = tmp_path_factory.mktemp("calm")
    loaded: dict[str, DiffusionPipeline] = {}

    def load(name: str) -> DiffusionPipeline:
        if name not in loaded:
            loaded[name] = load_ours(name, demo.ensure(name, root))
        return loaded[name]

    return load


def boxes(pixels: Pixels) -> Pixels:
    """Means of 8 x 8 blocks, spread out again."""
    means = pixels.reshape(8, 8, 8, 8, 3).mean(axis=(1, 3))
    return np.kron(means, np.ones((8, 8, 1))).round().astype(np.uint8)


def inpaint(family: str, **changes: Any) -> ImageRequest:
    request = Case(number=2, checkpoint=family, task=Task.INPAINT).request()
    return replace(request, **{"guidance": 3.0, "steps": 6, **changes})


def read_uniform(name: str) -> Pixels:
    """``black`` and ``white`` masks beside the usual inputs."""
    from tests.equality.stock import read_input

    shades = {"black": 0, "white": 255}
    return np.full((64, 64, 3), shades[name], dtype=np.uint8) if name in shades else read_input(name)


@pytest.mark.parametrize("family", ["sd15", "sdxl", "flux"])
def test_a_mask_changes_masked_pixels_only(family: str, calm: Callable[[str], DiffusionPipeline]) -> None:
    from tests.equality.stock import picture

    (drawn,) = draw(calm(family), [inpaint(family)])
    change = np.abs(drawn.astype(int) - boxes(picture(2)).astype(int))
    repainted = mask(2) > 0
    assert change[~repainted].max() <= 1
    assert change[repainted].max() > 20


@pytest.mark.parametrize("family", ["sd15", "sdxl", "flux"])
def test_a_black_mask_returns_the_input_and_a_white_one_redraws_everything(
    family: str, calm: Callable[[str], DiffusionPipeline], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.equality.stock import picture

    pipeline = calm(family)
    monkeypatch.setattr(pipeline.sources, "read", read_uniform)
    kept, redrawn = draw(pipeline, [inpaint(family, mask="black"), inpaint(family, mask="white", strength=1.0)])
    original = boxes(picture(2))
    assert difference(kept, original) <= 1
    assert np.abs(redrawn.astype(int) - original.astype(int)).mean() > 10


@pytest.mark.parametrize("family", ["sd15", "sdxl", "flux"])
def test_strength_moves_the_picture_away_step_by_step(family: str, calm: Callable[[str], DiffusionPipeline]) -> None:
    from tests.equality.stock import picture

    base = replace(Case(number=2, checkpoint=family, task=Task.IMG2IMG).request(), guidance=1.0, true_cfg=1.0, steps=10)
    strengths = (0.01, 0.3, 0.6, 0.9)
    drawn = draw(calm(family), [replace(base, strength=strength) for strength in strengths])
    moved = [float(np.abs(pixels.astype(int) - boxes(picture(2)).astype(int)).mean()) for pixels in drawn]
    assert moved == sorted(moved)
    assert moved[-1] > moved[0] + 5


@pytest.mark.parametrize("family", ["sd15", "sdxl", "flux"])
def test_a_strength_too_small_for_a_step_draws_one(family: str, calm: Callable[[str], DiffusionPipeline]) -> None:
    case = Case(number=2, checkpoint=family, task=Task.IMG2IMG, scheduler="EulerDiscreteScheduler")
    request = replace(case.request(), steps=49, strength=0.001)
    (rows,) = calm(family).prepare([request])
    assert isinstance(rows, list)
    assert rows[0].calls == 1


@pytest.mark.parametrize("name", ["sd15-inpaint", "sdxl-inpaint", "flux-fill"])
def test_an_inpaint_checkpoint_refuses_other_tasks(name: str, calm: Callable[[str], DiffusionPipeline]) -> None:
    request = replace(Case(number=0, checkpoint=name, task=Task.INPAINT).request(), image=None, mask=None)
    (error,) = calm(name).prepare([request])
    assert str(error) == f"model {name} only inpaints: it needs an image and a mask"


def test_karras_sigmas_reach_img2img(pipeline_of: Callable[[str], DiffusionPipeline]) -> None:
    base = Case(number=1, checkpoint="sd15", task=Task.IMG2IMG, scheduler="EulerDiscreteScheduler").request()
    plain, karras = draw(pipeline_of("sd15"), [base, replace(base, sigmas=Sigmas.KARRAS)])
    assert difference(plain, karras) > 3
