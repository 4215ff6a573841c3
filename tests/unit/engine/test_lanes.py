"""Which rows go into the next forward."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from server.engine.lanes import AGING_S, DEEP, RECOVER, Choice, Lanes


def join(
    lanes: Lanes, number: int, lane: str = "a", *, priority: int = 0, arrived: float = 0.0, calls: int = 10
) -> None:
    lanes.join(number, group=lane, lane=lane, priority=priority, arrived=arrived, entries=2, remaining=calls)


def choose(lanes: Lanes) -> Choice:
    choice = lanes.choose()
    assert choice is not None
    return choice


def teach(lanes: Lanes, lane: str, *, one_s: float, two_s: float) -> None:
    """Lets a lane take forwards of one row and of two, now and then disturbed."""
    join(lanes, 1000, lane)
    join(lanes, 1001, lane)
    for disturbance in (3.0, 0.0, 0.1, 7.0, 0.0):
        lanes.stepped(Choice(group=lane, lane=lane, rows=(1000,)), seconds=one_s + disturbance)
        lanes.stepped(Choice(group=lane, lane=lane, rows=(1000, 1001)), seconds=two_s + disturbance / 2)
    lanes.leave(1000)
    lanes.leave(1001)


def test_nothing_is_chosen_from_nothing() -> None:
    assert Lanes(max_rows=4).choose() is None


def test_all_rows_of_a_lane_share_a_forward() -> None:
    lanes = Lanes(max_rows=4)
    for number in range(3):
        join(lanes, number)
    assert choose(lanes).rows == (0, 1, 2)


def test_a_forward_takes_no_more_rows_than_the_cap_and_the_eldest_first() -> None:
    lanes = Lanes(max_rows=2)
    for number in range(4):
        join(lanes, number)
    assert choose(lanes).rows == (0, 1)


def test_choosing_alone_changes_nothing() -> None:
    lanes = Lanes(max_rows=2)
    join(lanes, 0, "a")
    join(lanes, 1, "b")
    assert choose(lanes) == choose(lanes)


def test_two_lanes_share_the_device_by_time_not_by_steps() -> None:
    lanes = Lanes(max_rows=4)
    join(lanes, 0, "slow", calls=100)
    join(lanes, 1, "fast", calls=100)
    taken = {"slow": 0, "fast": 0}
    for _ in range(44):
        choice = choose(lanes)
        taken[str(choice.lane)] += 1
        lanes.stepped(choice, seconds=1.0 if choice.lane == "slow" else 0.1)
    assert taken == {"slow": 4, "fast": 40}


def test_an_idle_lane_saves_up_nothing() -> None:
    lanes = Lanes(max_rows=4)
    join(lanes, 0, "busy", calls=100)
    for _ in range(10):
        lanes.stepped(choose(lanes), seconds=1.0)
    join(lanes, 1, "new", calls=100)
    lanes.stepped(choose(lanes), seconds=1.0)
    lanes.stepped(choose(lanes), seconds=1.0)
    taken = []
    for _ in range(6):
        taken.append(choose(lanes).lane)
        lanes.stepped(choose(lanes), seconds=1.0)
    assert taken.count("busy") == taken.count("new") == 3


def test_a_row_of_higher_priority_goes_first_where_the_cap_is_short() -> None:
    lanes = Lanes(max_rows=1)
    join(lanes, 0, arrived=0.0)
    join(lanes, 1, arrived=1.0, priority=1)
    assert choose(lanes).rows == (1,)


def test_waiting_long_enough_weighs_more_than_priority() -> None:
    lanes = Lanes(max_rows=1)
    join(lanes, 0, arrived=0.0)
    join(lanes, 1, arrived=AGING_S + 1.0, priority=1)
    assert choose(lanes).rows == (0,)


def test_the_cap_is_halved_until_one_row_is_left() -> None:
    lanes = Lanes(max_rows=4)
    for number in range(4):
        join(lanes, number)
    assert lanes.halve(choose(lanes)) == 2
    assert choose(lanes).rows == (0, 1)
    assert lanes.halve(choose(lanes)) == 1
    assert lanes.halve(choose(lanes)) == 0
    assert choose(lanes).rows == (0,)


def test_a_cap_learned_is_kept_while_the_lane_is_empty() -> None:
    lanes = Lanes(max_rows=4)
    join(lanes, 0)
    join(lanes, 1)
    lanes.halve(choose(lanes))
    lanes.leave(0)
    lanes.leave(1)
    join(lanes, 2)
    join(lanes, 3)
    assert choose(lanes).rows == (2,)


def test_rows_that_gain_nothing_by_sharing_are_drawn_one_after_another() -> None:
    lanes = Lanes(max_rows=4)
    teach(lanes, "large", one_s=1.0, two_s=1.96)
    join(lanes, 0, "large", calls=40)
    join(lanes, 1, "large", calls=40)
    assert choose(lanes).rows == (0,)


def test_a_few_measurements_are_not_enough_to_stop_sharing() -> None:
    lanes = Lanes(max_rows=4)
    join(lanes, 0, calls=40)
    join(lanes, 1, calls=40)
    for _ in range(4):
        lanes.stepped(Choice(group="a", lane="a", rows=(0,)), seconds=1.0)
        lanes.stepped(Choice(group="a", lane="a", rows=(0, 1)), seconds=2.0)
    assert choose(lanes).rows == (0, 1)


def test_a_short_request_overtakes_a_long_one_where_sharing_gains_nothing() -> None:
    lanes = Lanes(max_rows=4)
    teach(lanes, "large", one_s=1.0, two_s=1.96)
    join(lanes, 0, "large", calls=40, arrived=0.0)
    join(lanes, 1, "large", calls=4, arrived=5.0)
    assert choose(lanes).rows == (1,)


def test_even_rows_that_gain_little_share_when_many_wait() -> None:
    lanes = Lanes(max_rows=4)
    teach(lanes, "large", one_s=1.0, two_s=1.96)
    for number in range(DEEP):
        join(lanes, number, "large")
    assert choose(lanes).rows == (0, 1, 2, 3)


def test_rows_that_gain_by_sharing_share() -> None:
    lanes = Lanes(max_rows=4)
    teach(lanes, "small", one_s=1.0, two_s=1.2)
    join(lanes, 0, "small")
    join(lanes, 1, "small")
    assert choose(lanes).rows == (0, 1)


def test_a_row_that_wants_no_neighbours_shares_its_groups_account() -> None:
    lanes = Lanes(max_rows=4)
    for number in range(3):
        lanes.join(number, group="a", lane=("a", number), priority=0, arrived=0.0, entries=2, remaining=9)
    join(lanes, 3, "b", calls=9)
    taken = []
    for _ in range(6):
        choice = choose(lanes)
        taken.append(choice.group)
        assert len(choice.rows) == 1
        lanes.stepped(choice, seconds=1.0)
    assert taken.count("a") == taken.count("b") == 3


@dataclass
class Arrival:
    lane: str
    priority: int
    calls: int
    after: int


arrivals = st.lists(
    st.builds(
        Arrival,
        lane=st.sampled_from("abc"),
        priority=st.integers(-2, 2),
        calls=st.integers(1, 12),
        after=st.integers(0, 30),
    ),
    max_size=40,
)


@given(arrivals, st.integers(1, 5), st.dictionaries(st.sampled_from("abc"), st.floats(0.01, 2.0)))
@settings(max_examples=150, deadline=None)
def test_every_row_is_served_to_its_end_with_caps_and_order_kept(
    plan: list[Arrival], max_rows: int, seconds: dict[str, float]
) -> None:
    lanes = Lanes(max_rows=max_rows)
    now = 0.0
    left = {number: one.calls for number, one in enumerate(plan)}
    urgency: dict[int, float] = {}
    todo = sorted(enumerate(plan), key=lambda pair: pair[1].after)
    budget = sum(left.values()) + len(plan) + 40
    turn = 0
    while todo or len(lanes):
        assert turn <= budget, "a row starved"
        turn += 1
        while todo and todo[0][1].after <= turn:
            number, one = todo.pop(0)
            urgency[number] = now - AGING_S * one.priority
            join(lanes, number, one.lane, priority=one.priority, arrived=now, calls=one.calls)
        choice = lanes.choose()
        if choice is None:
            continue
        assert 1 <= len(choice.rows) <= max_rows
        assert {plan[number].lane for number in choice.rows} == {choice.lane}
        mates = [n for n in urgency if n in left and plan[n].lane == choice.lane and n not in choice.rows]
        if len(choice.rows) == max_rows:
            # Whoever had to stay out arrived later, or was less urgent.
            worst = max((urgency[n], n) for n in choice.rows)
            shared = max_rows > 1
            assert not shared or all((urgency[n], n) > worst for n in mates)
        spent = seconds.get(str(choice.lane), 0.1) * (1 + 0.1 * len(choice.rows))
        now += spent
        lanes.stepped(choice, seconds=spent)
        for number in choice.rows:
            left[number] -= 1
            if not left[number]:
                lanes.leave(number)
                del left[number]
    assert not left


@given(st.integers(1, 60), st.integers(2, 6))
@settings(max_examples=30, deadline=None)
def test_a_steady_stream_of_urgent_rows_does_not_starve_an_old_one(calls: int, priority: int) -> None:
    lanes = Lanes(max_rows=1)
    now = 0.0
    join(lanes, 0, calls=calls, arrived=now)
    served = 0
    for turn in range(1, int(10 * AGING_S * priority) + 2 * calls):
        join(lanes, turn, arrived=now, priority=priority, calls=1)
        choice = choose(lanes)
        served += choice.rows == (0,)
        lanes.stepped(choice, seconds=1.0)
        now += 1.0
        if choice.rows != (0,) or served == calls:
            lanes.leave(choice.rows[0])
        if served == calls:
            return
    raise AssertionError(f"{served} of {calls} calls after {now:.0f} s")


def test_a_busy_past_is_no_debt_towards_a_newcomer() -> None:
    lanes = Lanes(max_rows=4)
    join(lanes, 0, "old", calls=9999)
    for _ in range(3600):
        lanes.stepped(choose(lanes), seconds=1.0)
    lanes.leave(0)
    join(lanes, 1, "new", calls=100)
    lanes.stepped(choose(lanes), seconds=1.0)
    join(lanes, 2, "old", calls=100)
    taken = []
    for _ in range(10):
        choice = choose(lanes)
        taken.append(choice.lane)
        lanes.stepped(choice, seconds=1.0)
    assert abs(taken.count("old") - taken.count("new")) <= 2


def test_a_lowered_cap_rises_again_row_by_row() -> None:
    lanes = Lanes(max_rows=4)
    for number in range(4):
        join(lanes, number, calls=10**6)
    lanes.halve(choose(lanes))
    for _ in range(2 * RECOVER - 1):
        lanes.stepped(choose(lanes), seconds=1.0)
    assert lanes.cap("a") == 2
    lanes.stepped(choose(lanes), seconds=1.0)
    assert lanes.cap("a") == 3


def test_a_row_alone_that_finds_no_memory_lowers_nobodys_cap() -> None:
    lanes = Lanes(max_rows=4)
    lanes.join(0, group="a", lane=("a", 0), priority=0, arrived=0.0, entries=2, remaining=9)
    assert lanes.halve(choose(lanes)) == 0
    assert lanes.cap("a") == 4
