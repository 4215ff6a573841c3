"""The loop: requests join and leave between steps, and what goes wrong with one stays with it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from pipelines.base import Pixels, Row
from pipelines.errors import (
    BrokenCheckpoint,
    Cancelled,
    DeadlineExceeded,
    Error,
    InvalidRequest,
    NonFinite,
    OutOfMemory,
)
from pipelines.request import ImageRequest, Request
from pipelines.safety import Checked
from pipelines.stub import StubPipeline
from pipelines.vision import Answer
from server.engine.models import RETRY_S, Budget, ResidentModels
from tests.unit.engine.bench import Bench


def test_requests_handed_over_together_share_every_forward() -> None:
    bench = Bench(max_rows=16, slots=16)
    for steps in range(1, 9):
        bench.submit(steps=steps)
    assert bench.run() == 8
    assert [len(forward) for forward in bench.pipelines["a"].forwards] == [8, 7, 6, 5, 4, 3, 2, 1]
    assert sorted(bench.results) == list(range(8))


def test_a_short_request_joins_a_running_long_one_at_the_next_step() -> None:
    bench = Bench()
    bench.submit(steps=40)
    bench.run(turns=10)
    bench.submit(steps=4)
    bench.run(turns=4)
    assert list(bench.results) == [1]
    assert bench.pipelines["a"].forwards[10:] == [(0, 1)] * 4


def test_samples_are_rows_with_consecutive_seeds_and_come_back_in_order() -> None:
    bench = Bench()
    bench.submit(samples=3, seed=7)
    bench.run()
    assert [picture.seed for picture in bench.outcome(0).pictures] == [7, 8, 9]
    assert [int(picture.pixels[0, 0, 0]) for picture in bench.outcome(0).pictures] == [7, 8, 9]


def test_seeds_wrap_at_the_largest() -> None:
    bench = Bench()
    bench.submit(samples=2, seed=2**63 - 1)
    bench.run()
    assert [picture.seed for picture in bench.outcome(0).pictures] == [2**63 - 1, 0]


def test_a_cancelled_request_leaves_at_the_next_step_and_its_neighbour_stays() -> None:
    bench = Bench()
    gone = bench.submit(steps=9)
    bench.submit(steps=9)
    bench.run(turns=2)
    bench.engine.cancel(gone)
    bench.run()
    assert isinstance(bench.error(0), Cancelled)
    assert bench.outcome(1).pictures
    assert bench.pipelines["a"].forwards == [(0, 1)] * 2 + [(1,)] * 7
    assert not bench.pipelines["a"].inside


def test_a_waiting_request_can_be_cancelled() -> None:
    bench = Bench(max_rows=1, slots=1)
    bench.submit()
    waiting = bench.submit()
    bench.run(turns=1)
    bench.engine.cancel(waiting)
    bench.run()
    assert isinstance(bench.error(1), Cancelled)
    assert bench.pipelines["a"].forwards == [(0,)] * 4


def test_a_request_past_its_deadline_ends_at_the_next_step() -> None:
    bench = Bench()
    bench.submit(steps=9, deadline=50.0)
    bench.submit(steps=9)
    bench.run(turns=3)
    bench.now = 50.0
    bench.run()
    assert isinstance(bench.error(0), DeadlineExceeded)
    assert bench.pipelines["a"].forwards == [(0, 1)] * 3 + [(1,)] * 6


def test_a_request_that_is_late_before_it_starts_never_reaches_the_device() -> None:
    bench = Bench()
    bench.submit(deadline=1.0)
    bench.now = 2.0
    bench.run()
    assert isinstance(bench.error(0), DeadlineExceeded)
    assert bench.pipelines == {}


def test_a_row_that_is_not_finite_fails_alone() -> None:
    bench = Bench()
    for _ in range(3):
        bench.submit()
    bench.run(turns=1)
    bench.pipelines["a"].poison.add(1)
    bench.run()
    assert isinstance(bench.error(1), NonFinite)
    assert bench.outcome(0).pictures and bench.outcome(2).pictures
    assert bench.engine.stats.non_finite_rows_total == 1


def test_a_row_without_room_waits_until_another_one_has_left() -> None:
    bench = Bench()
    for number in range(3):
        bench.submit(steps=4 + number)
    bench.engine.turn()
    bench.pipelines["a"].room = 3
    # Another size, another lane: its first row finds no memory for the lane's tensors.
    late = [bench.submit(width=128), bench.submit(width=128)]
    bench.run(2)
    assert not any(ticket.ended for ticket in late)
    # One try, and none before somebody leaves.
    assert bench.engine.stats.out_of_memory_total == 1
    bench.run()
    assert [bench.outcome(number).pictures[0].pixels.shape for number in (3, 4)] == [(64, 128, 3)] * 2
    assert not bench.pipelines["a"].inside


def test_a_row_that_has_no_room_although_nobody_else_is_there_fails() -> None:
    bench = Bench()
    bench.submit()
    bench.run()
    bench.pipelines["a"].room = 0
    bench.submit()
    bench.run()
    assert isinstance(bench.error(1), OutOfMemory)


def test_out_of_memory_halves_the_forward_and_loses_no_step() -> None:
    bench = Bench(fits=2)
    for _ in range(8):
        bench.submit(steps=3)
    bench.run()
    forwards = bench.pipelines["a"].forwards
    assert max(len(forward) for forward in forwards) == 2
    assert sorted(seed for forward in forwards for seed in forward) == sorted(list(range(8)) * 3)
    assert all(bench.outcome(number).pictures for number in range(8))
    assert bench.engine.stats.out_of_memory_total == 2


def test_a_row_that_does_not_fit_alone_fails_and_the_next_is_tried() -> None:
    bench = Bench(fits=0)
    bench.submit()
    bench.submit()
    bench.run()
    assert isinstance(bench.error(0), OutOfMemory)
    assert isinstance(bench.error(1), OutOfMemory)


def test_a_fault_in_a_step_fails_its_rows_only_and_says_nothing_of_itself() -> None:
    bench = Bench()
    bench.submit(width=128)
    bench.submit()
    bench.run(turns=2)

    def fault(rows: Sequence[Row]) -> None:
        if rows[0].lane.shape == (64, 128):
            raise ValueError("secret path")

    bench.pipelines["a"].before_step = fault
    bench.run()
    assert bench.error(0).code == "internal"
    assert "secret" not in str(bench.error(0))
    assert bench.outcome(1).pictures


def test_a_request_that_cannot_be_prepared_fails_alone() -> None:
    bench = Bench()
    bench.submit()
    bench.run()
    bench.pipelines["a"].refuse["nonsense"] = InvalidRequest("no such scheduler", field="scheduler")
    bench.submit(prompt="nonsense")
    bench.submit()
    bench.run()
    assert str(bench.error(1)) == "no such scheduler"
    assert bench.outcome(2).pictures


def test_a_model_that_cannot_be_loaded_fails_its_requests_and_is_tried_again() -> None:
    bench = Bench()
    bench.broken.add("b")
    bench.submit(model="b")
    bench.submit(model="a")
    bench.run()
    assert isinstance(bench.error(0), BrokenCheckpoint)
    bench.broken.clear()
    bench.now += RETRY_S
    bench.submit(model="b")
    bench.run()
    assert bench.outcome(1).pictures and bench.outcome(2).pictures


def test_the_model_unused_for_longest_makes_room() -> None:
    bench = Bench(max_resident=2)
    for model in ("a", "b", "a", "c"):
        bench.submit(model=model)
        bench.run()
    assert bench.loads == ["a", "b", "c"]
    assert bench.pipelines["b"].closed and not bench.pipelines["a"].closed
    assert bench.engine.stats.loaded_models == ("a", "c")


def test_a_model_in_use_is_not_taken_away_and_its_later_requests_wait_their_turn() -> None:
    bench = Bench(max_resident=1)
    bench.submit(model="a", steps=6)
    bench.run(turns=1)
    bench.submit(model="b")
    bench.submit(model="a")
    bench.run()
    assert bench.loads == ["a", "b", "a"]
    assert list(bench.results) == [0, 1, 2]


def test_rows_beyond_the_slots_wait_and_all_finish() -> None:
    bench = Bench(max_rows=2, slots=3)
    for _ in range(4):
        bench.submit(samples=4, steps=2)
    bench.run()
    assert all(len(bench.outcome(number).pictures) == 4 for number in range(4))
    assert not bench.pipelines["a"].inside


def test_two_lanes_advance_side_by_side() -> None:
    bench = Bench()
    bench.submit(width=64, steps=6)
    bench.submit(width=128, steps=6)
    bench.run()
    order = [forward[0] for forward in bench.pipelines["a"].forwards]
    assert sorted(order) == [0] * 6 + [1] * 6
    assert all(abs(order[: n + 1].count(0) - order[: n + 1].count(1)) <= 2 for n in range(12))


def test_a_reproducible_request_is_drawn_without_neighbours() -> None:
    bench = Bench()
    bench.submit(steps=3)
    bench.submit(steps=3, reproducible=True, samples=2, seed=50)
    bench.submit(steps=3)
    bench.run()
    assert {forward for forward in bench.pipelines["a"].forwards if set(forward) & {50, 51}} == {(50,), (51,)}
    assert (0, 2) in bench.pipelines["a"].forwards


def test_a_more_urgent_request_is_prepared_first() -> None:
    bench = Bench(max_rows=1, slots=1)
    bench.submit()
    bench.submit()
    bench.submit(priority=1)
    bench.run()
    assert list(bench.results) == [2, 0, 1]


def test_closing_cancels_what_is_open_and_unloads() -> None:
    bench = Bench(max_rows=1, slots=1)
    bench.submit()
    bench.submit()
    bench.run(turns=1)
    bench.submit()
    bench.engine.close()
    assert all(isinstance(bench.error(number), Cancelled) for number in range(3))
    assert bench.pipelines["a"].closed


def test_progress_counts_calls_and_the_waiting_know_their_place() -> None:
    bench = Bench(max_rows=1, slots=1)
    first = bench.submit(steps=4)
    second = bench.submit(steps=4)
    third = bench.submit(steps=4)
    bench.run(turns=1)
    look = bench.engine.outlook
    assert (look.progress(first).step, look.progress(first).steps) == (1, 4)
    assert [look.progress(one).position for one in (first, second, third)] == [0, 0, 1]
    assert look.progress(third).eta_s > look.progress(second).eta_s > look.progress(first).eta_s > 0


def test_the_eta_follows_measured_steps() -> None:
    bench = Bench()
    long = bench.submit(steps=10)
    bench.run(turns=5)
    assert bench.engine.outlook.progress(long).eta_s == pytest.approx(5 * 1.01)


def test_stats_count_forwards_and_rows() -> None:
    bench = Bench()
    bench.submit(steps=3)
    bench.submit(steps=1)
    bench.run()
    stats = bench.engine.stats
    assert (stats.forwards_total, stats.row_steps_total, stats.rows_per_forward) == (3, 4, {2: 1, 1: 2})
    assert (stats.running_rows, stats.waiting_requests) == (0, 0)


def test_models_that_do_not_fit_the_budget_together_take_turns() -> None:
    weights = {"a": 60, "b": 50, "c": 30}
    bench = Bench(max_resident=9, budget=100, weigh=weights.__getitem__)
    for model in ("a", "b", "c", "a"):
        bench.submit(model=model)
        bench.run()
    assert bench.loads == ["a", "b", "c", "a"]
    assert bench.engine.models.names == ("c", "a")
    assert bench.engine.models.weight == 90


def test_a_model_that_can_never_fit_is_refused_with_figures() -> None:
    bench = Bench(budget=10 * 10**9, weigh=lambda name: 24 * 10**9 if name == "large" else 10**9)
    bench.submit(model="large")
    bench.submit(model="a")
    bench.run()
    assert (
        str(bench.error(0))
        == "model large needs 24.00 GB for its weights, and the device has room (vram_budget_gb) for 10.00"
    )
    assert bench.outcome(1).pictures


def test_a_model_waits_for_room_while_the_others_are_in_use() -> None:
    bench = Bench(max_resident=9, budget=100, weigh=lambda name: 60)
    bench.submit(model="a", steps=5)
    bench.run(turns=1)
    bench.submit(model="b")
    bench.run()
    assert bench.loads == ["a", "b"]
    assert list(bench.results) == [0, 1]


def test_a_model_whose_files_have_changed_is_loaded_anew_once_nothing_of_it_is_drawn() -> None:
    bench = Bench()
    bench.submit(steps=3)
    bench.run(turns=1)
    bench.stamps["a"] = 1
    bench.submit(steps=3)
    bench.run()
    assert bench.loads == ["a"]
    bench.submit()
    bench.run()
    assert bench.loads == ["a", "a"]


def test_a_full_group_does_not_hold_back_another_size() -> None:
    bench = Bench(max_rows=2, slots=2)
    for _ in range(5):
        bench.submit(steps=30)
    bench.run(turns=1)
    bench.submit(width=128, steps=1)
    bench.run(turns=3)
    assert list(bench.results) == [5]


def test_an_urgent_request_takes_the_next_slot_of_a_full_group() -> None:
    bench = Bench(max_rows=1, slots=1)
    for _ in range(3):
        bench.submit(steps=5)
    bench.run(turns=1)
    bench.submit(steps=5, priority=3)
    bench.run()
    assert list(bench.results) == [0, 3, 1, 2]


def test_a_fault_while_preparing_fails_the_one_to_blame_only() -> None:
    bench = Bench()
    bench.submit()
    bench.run()
    pipeline = bench.pipelines["a"]
    prepare = pipeline.prepare

    def fragile(requests: Sequence[Request]) -> list[list[Row] | Error]:
        if any(isinstance(one, ImageRequest) and one.prompt == "poison" for one in requests):
            raise ValueError("cannot be encoded")
        return prepare(requests)

    pipeline.prepare = fragile  # type: ignore[method-assign]
    for prompt in ("one", "two", "poison", "four", "five"):
        bench.submit(prompt=prompt)
    bench.run()
    assert bench.error(3).code == "internal"
    assert all(bench.outcome(number).pictures for number in (1, 2, 4, 5))


def test_a_model_that_cannot_be_loaded_costs_the_others_their_place_once() -> None:
    bench = Bench(max_resident=1)
    bench.broken.add("b")
    for model in ("a", "b", "a", "b", "b", "a"):
        bench.submit(model=model)
        bench.run()
    assert bench.loads == ["a", "a"]
    assert [number for number in bench.results if isinstance(bench.results[number], BrokenCheckpoint)] == [1, 3, 4]


def test_closing_after_a_fault_says_internal_not_cancelled() -> None:
    bench = Bench()
    bench.submit()
    bench.run(turns=1)
    bench.engine.close(Error("Internal server error. Please try again."))
    assert bench.error(0).code == "internal"


def test_a_model_alone_may_take_more_than_its_share() -> None:
    closed: list[str] = []

    class Closing(StubPipeline):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        def close(self) -> None:
            closed.append(self.name)

    weights = {"small": 10, "large": 95}
    models = ResidentModels(Closing, limit=9, budget=lambda: Budget(together=80, alone=98), weigh=weights.__getitem__)
    models.get("small", set())
    models.get("large", set())
    assert (closed, models.names) == (["small"], ("large",))


class Checker:
    """Takes 20 bytes until it is released."""

    def __init__(self) -> None:
        self.there = True

    def bytes(self) -> int:
        return 20 * self.there

    def release(self) -> None:
        self.there = False


def models_beside(checker: Checker, **weights: int) -> ResidentModels:
    return ResidentModels(
        lambda name: StubPipeline(),
        limit=9,
        budget=lambda: Budget(together=80, alone=98),
        weigh=weights.__getitem__,
        beside=[checker],
    )


def test_what_is_beside_the_models_counts_in_the_budget() -> None:
    checker = Checker()
    models = models_beside(checker, a=30, b=30, c=31)
    models.get("a", set())
    models.get("b", set())
    assert models.names == ("a", "b")
    models.get("c", {"b"})
    assert (models.names, checker.there) == (("b", "c"), False)


def test_idle_models_leave_before_what_is_beside_them() -> None:
    checker = Checker()
    models = models_beside(checker, a=30, b=31)
    models.get("a", set())
    models.get("b", set())
    assert (models.names, checker.there) == (("b",), True)


def test_a_model_that_fits_alone_is_not_refused_for_what_is_beside_it() -> None:
    checker = Checker()
    models = models_beside(checker, a=90)
    models.get("a", set())
    assert (models.names, checker.there) == (("a",), False)


def test_what_comes_beside_the_models_sends_idle_ones_away() -> None:
    checker = Checker()
    checker.release()
    models = models_beside(checker, a=30, b=40)
    models.get("a", set())
    models.get("b", set())
    checker.there = True
    models.make_room({"a"})
    assert models.names == ("a",)
    models.make_room({"a"})
    assert models.names == ("a",)


def test_what_preparing_brings_beside_the_models_sends_idle_ones_away() -> None:
    class Brought:
        """Comes with model b, as an IP-Adapter that a request asks for."""

        def bytes(self) -> int:
            return 50 if "b" in bench.pipelines else 0

        def release(self) -> None: ...

    bench = Bench(budget=100, weigh={"a": 30, "b": 40}.__getitem__, beside=[Brought()])
    for model in ("a", "b"):
        bench.submit(model=model)
        bench.run()
    assert bench.outcome(1)
    assert bench.engine.stats.loaded_models == ("b",)


def flag_dark(pictures: Sequence[Pixels], replacements: Sequence[str]) -> list[Checked | Error]:
    """Stub pictures are as bright as their seed."""
    dark = [bool(pixels.max() < 2) for pixels in pictures]
    return [
        Checked(pixels=pixels * 0 + 255 if flagged else pixels, flagged=flagged)
        for pixels, flagged in zip(pictures, dark, strict=True)
    ]


def test_rows_that_ask_for_it_are_checked_together() -> None:
    seen: list[tuple[str, ...]] = []

    def check(pictures: Sequence[Pixels], replacements: Sequence[str]) -> list[Checked | Error]:
        seen.append(tuple(replacements))
        return flag_dark(pictures, replacements)

    bench = Bench(check=check)
    for seed, safety in ((1, "blur"), (2, None), (9, "black")):
        bench.submit(seed=seed, safety=safety)
    bench.run()
    assert seen == [("blur", "black")]
    assert [bench.outcome(number).pictures[0].nsfw for number in range(3)] == [True, False, False]
    assert [int(bench.outcome(number).pictures[0].pixels.max()) for number in range(3)] == [255, 2, 9]


def test_a_picture_that_cannot_be_checked_fails_and_its_neighbours_do_not() -> None:
    def check(pictures: Sequence[Pixels], replacements: Sequence[str]) -> list[Checked | Error]:
        return [OutOfMemory("too little memory"), *flag_dark(pictures[1:], replacements)]

    bench = Bench(check=check)
    for safety in ("blur", "blur", None):
        bench.submit(safety=safety)
    bench.run()
    assert isinstance(bench.error(0), OutOfMemory)
    assert bench.outcome(1).pictures[0].nsfw
    assert not bench.outcome(2).pictures[0].nsfw


@pytest.mark.parametrize("answer", [RuntimeError("a secret"), []])
def test_a_fault_of_the_checker_lets_nothing_through(answer: Exception | list[Checked | Error]) -> None:
    def check(pictures: Sequence[Pixels], replacements: Sequence[str]) -> list[Checked | Error]:
        if isinstance(answer, Exception):
            raise answer
        return answer

    bench = Bench(check=check)
    for safety in ("blur", None):
        bench.submit(safety=safety)
    bench.run()
    assert str(bench.error(0)) == "Internal server error. Please try again."
    assert bench.outcome(1)


def test_an_idle_engine_remembers_what_a_row_costs() -> None:
    bench = Bench()
    bench.submit()
    bench.run()
    assert bench.engine.stats.per_row_s == pytest.approx(1.01)


def test_a_question_is_answered_in_one_call_and_draws_nothing() -> None:
    bench = Bench()
    bench.ask("a dog")
    bench.ask("a cat")
    assert bench.run() == 1
    assert [bench.outcome(number).answers for number in (0, 1)] == [
        (Answer(text="caption: a dog"),),
        (Answer(text="caption: a cat"),),
    ]
    assert bench.outcome(0).pictures == ()


def test_answers_that_grow_with_other_numbers_of_beams_share_no_call() -> None:
    bench = Bench()
    bench.ask(beams=3)
    bench.ask(beams=1)
    assert bench.run() == 2


def test_a_row_of_captions_delays_a_step_by_one_call_at_most() -> None:
    bench = Bench(max_rows=4, slots=8)
    for _ in range(40):
        bench.ask()
    bench.submit(steps=8)
    order: list[str] = []

    def note(rows: Sequence[Row]) -> None:
        bench.tick(rows)
        order.append(rows[0].lane.model)

    for model in ("a", "v"):
        bench.engine.models.get(model, set())
        bench.pipelines[model].before_step = note
    bench.run()
    assert order.count("a") == 8 and order.count("v") == 10
    first, last = order.index("a"), len(order) - order[::-1].index("a")
    assert "vv" not in "".join(order[first:last])
