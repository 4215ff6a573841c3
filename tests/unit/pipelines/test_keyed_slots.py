"""Contents by key, one slot each."""

from __future__ import annotations

import pytest

from pipelines.keyed_slots import KeyedSlots


def slots(**values: int) -> KeyedSlots:
    return KeyedSlots(**{"growth": 2, "max_idle": 2, **values})


def test_equal_keys_share_a_slot_that_is_written_once() -> None:
    kept, written = slots(), list[int]()
    assert [kept.take("a", written.append), kept.take("a", written.append), kept.take("b", written.append)] == [1, 1, 2]
    assert (written, kept.users, len(kept), kept.capacity) == ([1, 2], 3, 2, 3)


def test_what_is_unused_for_longest_makes_room_once_enough_is_unused() -> None:
    kept, written = slots(), list[int]()
    held = kept.take("held", written.append)
    for key in ("a", "b", "c", "d"):
        kept.give(kept.take(key, written.append))
    assert (len(kept), kept.capacity) == (4, 5)
    before = len(written)
    assert kept.take("held", written.append) == held
    kept.take("d", written.append)
    assert len(written) == before
    kept.take("a", written.append)
    assert len(written) == before + 1


def test_a_used_slot_is_never_taken() -> None:
    kept = slots(max_idle=0)
    taken = [kept.take(key, lambda slot: None) for key in range(20)]
    assert len(set(taken)) == 20 and 0 not in taken


def test_a_slot_that_could_not_be_written_is_not_lost() -> None:
    def fail(slot: int) -> None:
        raise MemoryError

    kept = slots()
    with pytest.raises(MemoryError):
        kept.take("a", fail)
    assert (kept.users, len(kept)) == (0, 0)
    assert kept.take("a", lambda slot: None) == 1


def test_slot_0_is_nobodys() -> None:
    kept = slots()
    kept.give(0)
    assert kept.users == 0


def test_where_nothing_may_grow_what_is_unused_makes_room_and_what_is_used_does_not() -> None:
    kept, written = slots(max_idle=9), list[int]()

    def take(key: str) -> int:
        return kept.take(key, written.append, may_grow=lambda: False)

    held = [take("a"), take("b")]
    assert kept.capacity == 3
    kept.give(held[0])
    assert take("c") == held[0]
    assert (take("d"), kept.capacity) == (3, 5)


def test_cleared_slots_begin_anew() -> None:
    kept = slots()
    kept.give(kept.take("a", lambda slot: None))
    kept.clear()
    assert (len(kept), kept.capacity, kept.take("b", lambda slot: None)) == (0, 1, 1)
