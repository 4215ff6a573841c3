"""Rows with a VAE of their own choice are stock's with ``pipe.vae = …``, in one lane with rows of the model's own."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from pipelines import demo
from pipelines.auxiliary import find_auxiliary
from pipelines.demo.vae import noisy, swapped
from pipelines.request import Task
from tests.equality.stock import Case, Stock, difference, draw, load_ours

#: diffusers' Euler schedulers make numpy arrays of tensors in a way that numpy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.mark.parametrize("checkpoint", ["sd15", "sdxl", "flux"])
def test_rows_of_two_vaes_in_one_lane_are_each_stocks(checkpoint: str, tmp_path: Path) -> None:
    folder = demo.ensure(checkpoint, tmp_path / "demo")
    noisy(folder)
    custom = tmp_path / "vaes" / "swapped"
    swapped(folder, custom)
    cases = [Case(number=number, checkpoint=checkpoint, task=task) for number, task in enumerate(Task)]
    plain = [case.request() for case in cases]
    requests = plain + [replace(request, vae="swapped") for request in plain]
    ours = draw(load_ours(checkpoint, folder, find_auxiliary=partial(find_auxiliary, tmp_path)), requests)
    stocks = [Stock(checkpoint, folder), Stock(checkpoint, folder, vae=custom)]
    expected = [stock.pixels(case) for stock in stocks for case in cases]
    assert [difference(*pair) <= 1 for pair in zip(ours, expected, strict=True)] == [True] * 6
    assert min(map(difference, ours[:3], ours[3:])) > 20
