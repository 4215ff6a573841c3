from __future__ import annotations

import pytest

from server.pace import Pace


def test_intervals_count_while_others_wait() -> None:
    pace = Pace()
    pace.finished(100.0, waiting=True)
    assert pace.seconds == 1.0
    pace.finished(106.0, waiting=True)
    assert pace.seconds == pytest.approx(2.0)


def test_an_interval_without_work_says_nothing() -> None:
    pace = Pace()
    pace.finished(100.0, waiting=True)
    pace.finished(500.0, waiting=False)
    assert pace.seconds == 1.0
    pace.finished(501.0, waiting=True)
    assert pace.seconds == pytest.approx(1.0)
