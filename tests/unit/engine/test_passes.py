"""Rows that go on: what is drawn in several passes is one request to everybody outside."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from pipelines.base import Pixels, Row, of_kind
from pipelines.errors import Cancelled, DeadlineExceeded, Error, InvalidRequest, NonFinite
from pipelines.passes import HIGHRES_STRENGTH
from pipelines.request import ImageRequest
from pipelines.safety import Checked
from pipelines.upscalers import BAND_PIXELS
from tests.unit.engine.bench import Bench

TWO_PASSES: dict[str, Any] = {"width": 128, "height": 128, "highres": (64, 64)}


def test_a_row_of_two_passes_starts_the_second_from_the_picture_of_the_first() -> None:
    bench = Bench()
    bench.submit(**TWO_PASSES, steps=4, seed=9, samples=2)
    bench.run()
    first, *second = of_kind(bench.pipelines["a"].prepared, ImageRequest)
    assert (first.width, first.image, first.samples, first.seed) == (64, None, 2, 9)
    assert [(one.width, one.strength, one.samples, one.seed) for one in second] == [
        (128, HIGHRES_STRENGTH, 1, 9), (128, HIGHRES_STRENGTH, 1, 10)
    ]  # fmt: skip
    assert len({one.image for one in second}) == 2
    pictures = bench.outcome(0).pictures
    assert [(one.pixels.shape, one.seed) for one in pictures] == [((128, 128, 3), 9), ((128, 128, 3), 10)]


def test_the_picture_can_be_asked_for_while_its_pass_is_open_and_is_forgotten_after() -> None:
    bench = Bench()
    bench.submit(**TWO_PASSES, seed=9)
    seen: list[Pixels] = []

    def look(rows: Sequence[Row]) -> None:
        (request,) = of_kind([row.request for row in rows], ImageRequest)
        if request.image is not None:
            seen.append(bench.engine.carried[request.image].copy())

    bench.run(turns=1)
    bench.pipelines["a"].before_step = look
    bench.run()
    assert np.array_equal(seen[0], np.full((64, 64, 3), 9, dtype=np.uint8))
    gc.collect()
    assert not bench.engine.carried


def test_second_passes_share_forwards_with_one_another_and_with_other_requests_of_their_size() -> None:
    bench = Bench()
    bench.submit(**TWO_PASSES, steps=4, seed=1)
    bench.submit(**TWO_PASSES, steps=4, seed=2)
    bench.submit(width=128, height=128, steps=12, seed=3)
    bench.run()
    assert (1, 2) in bench.pipelines["a"].forwards
    assert any(set(forward) == {1, 2, 3} for forward in bench.pipelines["a"].forwards)


def test_only_the_last_picture_is_checked_and_its_flag_is_kept() -> None:
    looked: list[tuple[int, ...]] = []

    def check(pictures: Sequence[Pixels], replacements: Sequence[str]) -> list[Checked | Error]:
        looked.extend(picture.shape for picture in pictures)
        return [Checked(pixels=picture, flagged=True) for picture in pictures]

    bench = Bench(check=check)
    bench.submit(**TWO_PASSES, safety="blur")
    bench.run()
    assert looked == [(128, 128, 3)]
    assert bench.outcome(0).pictures[0].nsfw


@pytest.mark.parametrize("turns", [2, 5])
def test_a_cancel_acts_in_every_pass_and_frees_what_was_held(turns: int) -> None:
    bench = Bench()
    ticket = bench.submit(**TWO_PASSES, samples=2)
    bench.submit(steps=30)
    bench.run(turns=turns)
    bench.engine.cancel(ticket)
    bench.run(turns=1)
    assert isinstance(bench.error(0), Cancelled)
    assert {row.calls for row in bench.pipelines["a"].inside} == {30}
    gc.collect()
    assert not bench.engine.carried


def test_a_deadline_acts_in_the_second_pass() -> None:
    bench = Bench()
    bench.submit(**TWO_PASSES, steps=4, deadline=5.0)
    bench.run()
    assert isinstance(bench.error(0), DeadlineExceeded)
    assert not bench.pipelines["a"].inside


def test_a_row_that_fails_in_its_second_pass_fails_its_request_and_no_other() -> None:
    bench = Bench()
    bench.submit(**TWO_PASSES, samples=3, seed=10)
    bench.submit(**TWO_PASSES, seed=20)
    bench.run(turns=4)
    bench.pipelines["a"].poison.add(11)
    bench.run()
    assert isinstance(bench.error(0), NonFinite)
    assert bench.outcome(1).pictures
    assert not bench.pipelines["a"].inside


def test_a_second_pass_that_cannot_be_prepared_fails_its_request_while_others_of_it_are_drawn() -> None:
    bench = Bench()
    bench.submit(**TWO_PASSES, samples=2, seed=10)
    bench.run(turns=3)
    pipeline = bench.pipelines["a"]
    prepare = pipeline.prepare
    pipeline.prepare = lambda requests: [  # type: ignore[method-assign]
        InvalidRequest("no") if request.seed == 11 else rows
        for request, rows in zip(of_kind(requests, ImageRequest), prepare(requests), strict=True)
    ]
    bench.run()
    assert isinstance(bench.error(0), InvalidRequest)
    assert not pipeline.inside


def test_progress_counts_both_passes_from_the_start() -> None:
    bench = Bench()
    ticket = bench.submit(**TWO_PASSES, steps=10, samples=2)
    bench.run(turns=1)
    first = bench.engine.outlook.progress(ticket)
    assert (first.step, first.steps) == (2, 2 * (10 + 5))
    bench.run(turns=10)
    later = bench.engine.outlook.progress(ticket)
    assert (later.step, later.steps) == (22, 30)
    assert 0 < later.eta_s < first.eta_s
    bench.run()
    assert (ticket.applied, ticket.calls) == (30, 30)


def test_between_its_passes_a_request_counts_as_running() -> None:
    bench = Bench(max_rows=1, slots=1)
    ticket = bench.submit(**TWO_PASSES, steps=2)
    bench.submit(width=128, height=128, steps=9)
    bench.run(turns=4)
    assert bench.engine.stats.waiting_requests == 0
    assert bench.engine.outlook.progress(ticket).position == 0


def test_a_picture_is_enlarged_after_it_was_checked_and_keeps_its_flag() -> None:
    looked: list[tuple[int, ...]] = []

    def check(pictures: Sequence[Pixels], replacements: Sequence[str]) -> list[Checked | Error]:
        looked.extend(picture.shape for picture in pictures)
        return [Checked(pixels=picture * 0, flagged=True) for picture in pictures]

    bench = Bench(check=check)
    bench.submit(safety="black", upscale=2, samples=2)
    bench.run()
    assert looked == [(64, 64, 3)] * 2
    assert [(one.pixels.shape, one.nsfw) for one in bench.outcome(0).pictures] == [((128, 128, 3), True)] * 2
    assert bench.loads == ["a", "upscaler:2x"]
    (first, _) = of_kind(bench.pipelines["upscaler:2x"].prepared, ImageRequest)
    assert (first.prompt, first.safety, first.width) == ("", None, 128)


def test_all_three_passes_are_counted() -> None:
    bench = Bench()
    ticket = bench.submit(**TWO_PASSES, steps=10, upscale=3)
    enlarging = -(-384 * 384 // BAND_PIXELS) + 1
    assert ticket.calls == 10 + 5 + enlarging
    bench.run()
    assert (ticket.applied, ticket.calls) == (10 + 5 + enlarging,) * 2


def test_denoising_goes_on_between_the_steps_of_an_upscaler() -> None:
    bench = Bench()
    served: list[str] = []

    def note(rows: Sequence[Row]) -> None:
        served.append(rows[0].lane.model)
        bench.now += 1.0

    bench.submit(width=1024, height=1024, steps=1, upscale=5)
    bench.submit(steps=60)
    bench.run(turns=3)
    for name in ("a", "upscaler:5x"):
        bench.pipelines[name].before_step = note
    bench.run()
    while served[-1] == "a":
        served.pop()
    runs = [(name, len(list(run))) for name, run in itertools.groupby(served)]
    assert served.count("upscaler:5x") > 20
    assert max(length for _, length in runs) <= 2, "each waits for a step or two of the other"


def test_a_cancelled_upscaling_frees_its_place_at_the_next_step() -> None:
    bench = Bench()
    ticket = bench.submit(width=1024, height=1024, steps=1, upscale=5, samples=2)
    bench.run(turns=6)
    assert bench.pipelines["upscaler:5x"].inside
    bench.engine.cancel(ticket)
    bench.run()
    assert isinstance(bench.error(0), Cancelled)
    assert not bench.pipelines["upscaler:5x"].inside
    gc.collect()
    assert not bench.engine.carried


def test_an_upscaler_takes_no_models_place() -> None:
    bench = Bench(max_resident=1)
    bench.submit(steps=30)
    bench.run(turns=1)
    bench.submit(upscale=2)
    bench.run()
    assert list(bench.results) == [1, 0]
    assert bench.loads == ["a", "upscaler:2x"]
    assert not bench.pipelines["a"].closed


def test_an_upscaler_keeps_to_the_budget() -> None:
    bench = Bench(budget=100, weigh=lambda name: 60)
    bench.submit(upscale=2)
    bench.run()
    assert bench.outcome(0).pictures
    assert bench.pipelines["a"].closed
