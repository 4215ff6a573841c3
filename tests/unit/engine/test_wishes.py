"""Models loaded ahead of any request."""

from __future__ import annotations

from pipelines.errors import BrokenCheckpoint, Cancelled
from tests.unit.engine.bench import Bench


def test_a_wish_loads_a_model_that_nobody_draws_with() -> None:
    bench = Bench()
    told: list[Exception | None] = []
    bench.engine.wishes.add("a", told.append)
    assert [bench.engine.turn() for _ in range(2)] == [True, False]
    assert (told, bench.engine.stats.loaded_models) == ([None], ("a",))


def test_a_wish_takes_no_model_away_that_is_in_use() -> None:
    bench = Bench(max_resident=1)
    bench.submit(model="a", steps=3)
    bench.run(turns=1)
    told: list[Exception | None] = []
    bench.engine.wishes.add("b", told.append)
    bench.run(turns=1)
    assert (told, bench.engine.stats.loaded_models) == ([], ("a",))
    bench.run()
    bench.engine.turn()
    assert (told, bench.engine.stats.loaded_models) == ([None], ("b",))


def test_a_wish_that_cannot_be_granted_is_told_why() -> None:
    bench = Bench()
    bench.broken.add("a")
    told: list[Exception | None] = []
    bench.engine.wishes.add("a", told.append)
    bench.engine.turn()
    assert isinstance(told[0], BrokenCheckpoint)


def test_work_is_done_on_the_engines_turn() -> None:
    bench = Bench()
    done: list[int] = []
    told: list[Exception | None] = []
    bench.engine.wishes.run(lambda: done.append(1), told.append)
    bench.engine.wishes.run(lambda: done.append([][0]), told.append)
    assert done == []
    assert [bench.engine.turn() for _ in range(3)] == [True, True, False]
    assert done == [1]
    assert {type(one) for one in told} == {type(None), IndexError}


def test_between_two_wishes_is_a_step() -> None:
    bench = Bench()
    bench.submit(steps=4)
    bench.run(turns=1)
    steps: list[float] = []
    for _ in range(3):
        bench.engine.wishes.run(lambda: steps.append(bench.now), lambda error: None)
    for name in ("b", "c"):
        bench.engine.wishes.add(name, lambda error: None)
    bench.run(turns=1)
    assert (len(steps), bench.loads) == (1, ["a", "b"])
    bench.run()
    assert len(set(steps)) == 3


def test_wishes_end_with_the_engine() -> None:
    bench = Bench()
    told: list[Exception | None] = []
    bench.engine.wishes.add("a", told.append)
    bench.engine.wishes.run(lambda: None, told.append)
    bench.engine.close()
    assert [type(one) for one in told] == [Cancelled, Cancelled]
