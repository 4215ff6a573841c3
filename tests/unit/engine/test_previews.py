"""Previews: made while somebody watches, at a bounded rate, and never at the cost of a request."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from pipelines.base import Glimpse
from server.engine.previews import WATCH_S
from tests.unit.engine.bench import Bench


def glimpses(bench: Bench) -> list[tuple[int, ...]]:
    """Seeds of the rows of each."""
    return [tuple(row.seed for row in one.rows) for one in bench.pipelines["a"].glimpses]


def test_nothing_is_made_while_nobody_watches() -> None:
    bench = Bench()
    ticket = bench.submit(steps=9)
    bench.run()
    assert glimpses(bench) == []
    assert [*ticket.previews] == []


def test_only_the_rows_of_the_watched_request_are_shown() -> None:
    bench = Bench()
    bench.submit(steps=9)
    watched = bench.submit(steps=9, samples=2, seed=40)
    bench.run(turns=1)
    bench.engine.previews.watch(watched)
    bench.run(turns=1)
    assert glimpses(bench) == [(40, 41)]
    assert [(one.index, one.step, int(one.pixels[0, 0, 0])) for one in watched.previews] == [(0, 2, 40), (1, 2, 41)]


def test_a_picture_is_shown_at_most_once_a_second_and_who_stops_asking_stops_it() -> None:
    bench = Bench()
    ticket = bench.submit(steps=40)
    bench.run(turns=1)
    # Steps of a tenth of a second.
    bench.pipelines["a"].before_step = lambda rows: setattr(bench, "now", bench.now + 0.1)
    bench.engine.previews.watch(ticket)
    bench.run(turns=25)
    assert len(glimpses(bench)) == 3
    bench.run()
    assert len(glimpses(bench)) <= WATCH_S


def test_the_newest_replaces_the_older_one() -> None:
    bench = Bench()
    ticket = bench.submit(steps=9)
    for turn in range(1, 6):
        bench.engine.previews.watch(ticket)
        bench.run(turns=1)
        assert [one.step for one in ticket.previews] == [turn]


def test_the_last_step_is_not_shown_for_the_picture_follows() -> None:
    bench = Bench()
    bench.engine.previews.watch(bench.submit(steps=1))
    bench.run()
    assert glimpses(bench) == []


def test_what_has_not_arrived_is_not_waited_for() -> None:
    bench = Bench()
    ticket = bench.submit(steps=9)
    bench.run(turns=1)
    pipeline = bench.pipelines["a"]
    # Time stands still, so there is one.
    pipeline.before_step = lambda rows: setattr(pipeline.glimpses[0], "arrived", False)
    bench.engine.previews.watch(ticket)
    bench.run(turns=2)
    assert [*ticket.previews] == []
    pipeline.before_step = None
    pipeline.glimpses[0].arrived = True
    bench.run(turns=1)
    assert [one.step for one in ticket.previews] == [2]


def test_a_step_that_did_not_happen_shows_nothing() -> None:
    bench = Bench(fits=0)
    ticket = bench.submit(steps=9)
    bench.engine.previews.watch(ticket)
    bench.run()
    assert not any(one.developed for one in bench.pipelines["a"].glimpses)
    assert [*ticket.previews] == []


def test_what_the_safety_checker_is_to_look_at_is_not_shown() -> None:
    bench = Bench()
    for highres in (None, (64, 64)):
        bench.engine.previews.watch(bench.submit(steps=9, safety="black", highres=highres))
    bench.run()
    assert glimpses(bench) == []


def test_a_question_has_nothing_to_show() -> None:
    bench = Bench()
    bench.engine.previews.watch(bench.ask())
    bench.run()
    assert bench.outcome(0).answers


@pytest.mark.parametrize("when", ["begin", "develop"])
def test_a_preview_that_cannot_be_made_is_logged_once_and_the_request_goes_on(
    when: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bench = Bench()
    ticket = bench.submit(steps=9)
    bench.run(turns=1)

    def fail(*_: Any) -> Glimpse:
        raise RuntimeError("no memory")

    pipeline = bench.pipelines["a"]
    monkeypatch.setattr(
        *((pipeline, "glimpse", fail) if when == "begin" else ("pipelines.stub.StubGlimpse.develop", fail))
    )
    with caplog.at_level(logging.ERROR):
        for _ in range(4):
            bench.engine.previews.watch(ticket)
            bench.run(turns=1)
    bench.run()
    assert [record.message for record in caplog.records] == ["no preview can be made"]
    assert bench.outcome(0).pictures
