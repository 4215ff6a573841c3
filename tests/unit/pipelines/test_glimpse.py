"""What rows are becoming: predicted by every sampler's table, shown in the VAE's own colours, and no row the worse."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from pipelines.glimpse import _level, shares
from pipelines.request import ImageRequest
from schedulers.flow import Flow
from schedulers.registry import SCHEDULERS
from schedulers.table import SamplerTable, compile_table
from tests.unit.pipelines.test_diffusion import difference, entered, finished, wish

if TYPE_CHECKING:
    from pipelines.sd15 import StableDiffusion15

CONFIG: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
}
PICTURE = 0.7


def drawn(table: SamplerTable, predict: Any) -> list[float | None]:
    """Per call how far the prediction is from the picture, for a network that knows the picture; None: not shown."""
    draw = np.random.default_rng(0).normal
    x = table.start[0] * PICTURE + table.start[1] * draw(size=500)
    hidden = np.zeros((3, 500))
    errors: list[float | None] = []
    for at in range(table.calls):
        noise = draw(size=500)
        after = table.matrices[at].astype(float) @ np.stack([x, *hidden, predict(x, *_level(table, at)), noise])
        part = shares(table, at)
        if part is None:
            errors.append(None)
        else:
            predicted = part.after * (after[0] - part.noise * noise) - part.before * x
            errors.append(float(np.abs(predicted - PICTURE).max()))
        x, hidden = after[0], after[1:]
    return errors


@pytest.mark.parametrize("steps", [5, 20])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_network_that_knows_the_picture_shows_it_from_the_first_steps(scheduler: str, steps: int) -> None:
    table = compile_table(scheduler, CONFIG, steps, strength=None)
    # Without the last call, after which there is the picture itself.
    errors = drawn(table, lambda x, alpha, sigma: (x - alpha * PICTURE) / sigma)[:-1]
    known = [error for error in errors if error is not None]
    assert max(known) < 0.01
    assert len(known) >= len(errors) // 2
    assert None not in [errors[0] or errors[1]]


def test_so_does_a_flow_matching_one() -> None:
    config = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
    table = compile_table("EulerDiscreteScheduler", config, 8, flow=Flow(shift=3.0), repair=False)
    errors = drawn(table, lambda x, alpha, sigma: (x - PICTURE) / sigma)
    assert max(error for error in errors if error is not None) < 0.001
    assert None not in errors


def glimpsed(pipeline: StableDiffusion15, request: ImageRequest) -> tuple[list[Any], Any]:
    """The pictures before the last step, and the finished one."""
    rows = entered(pipeline, request)
    shown = []
    while rows[0].remaining > 1:
        glimpse = pipeline.glimpse(rows)
        pipeline.step(rows)
        if glimpse is not None:
            glimpse.develop()
            shown.append(glimpse.pixels())
    return shown, finished(pipeline, rows)[0]


def test_a_glimpse_is_the_picture_in_small_and_in_its_colours(sd15: StableDiffusion15) -> None:
    shown, picture = glimpsed(sd15, wish(scheduler="DDIMScheduler", steps=8, width=128))
    assert [one[0].shape for one in shown] == [(8, 16, 3)] * 7
    small = picture.reshape(8, 8, 16, 8, 3).mean(axis=(1, 3))
    apart = [float(np.abs(one[0] - small).mean()) for one in shown]
    # The demo VAE is a box filter, so its colours are learnt to the last level; the picture still changes a little.
    assert apart[-1] < 12
    assert apart[-1] < apart[0]


def test_rows_that_are_looked_at_are_drawn_to_the_bit_as_before(sd15: StableDiffusion15) -> None:
    undisturbed = finished(sd15, entered(sd15, wish()))[0]
    _, picture = glimpsed(sd15, wish())
    assert difference(undisturbed, picture) == 0


def test_colours_are_learnt_from_the_vae(sd15: StableDiffusion15) -> None:
    import torch

    from pipelines.colours import clouds, learn

    vae = sd15.vaes.own
    with torch.inference_mode():
        colours = learn(vae, torch.device("cpu"))
        picture = clouds(64).flip(-1)
        shown = colours.show(vae.scale(vae.encode(picture[None]).mean))
    wanted = torch.nn.functional.avg_pool2d(picture, 8).permute(1, 2, 0) * 127.5 + 127.5
    assert float((shown - wanted).abs().max()) < 2
    assert float(clouds(64).std()) > 0.3
