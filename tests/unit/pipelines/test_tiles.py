"""Windows that cover a picture."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pipelines.tiles import cut


@given(st.integers(1, 500), st.integers(1, 20), st.integers(1, 60))
def test_what_is_kept_is_the_whole_and_each_part_is_seen_with_what_is_around_it(
    units: int, margin: int, kept: int
) -> None:
    length, margin, window = 4 * units, 4 * margin, 4 * (2 * margin + kept)
    spans = cut(length, window, margin)
    assert [one.kept_start for one in spans] == [0, *(one.kept_end for one in spans[:-1])]
    assert spans[-1].kept_end == length
    for one in spans:
        assert one.end - one.start == min(window, length)
        assert 0 <= one.start <= one.kept_start < one.kept_end <= one.end <= length
        assert one.start % 4 == 0
        assert one.start == 0 or one.kept_start - one.start >= margin
        assert one.end == length or one.end - one.kept_end >= margin
