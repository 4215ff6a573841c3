"""Calls that may come only so often."""

from __future__ import annotations

import pytest

from server.api.modelslab.throttle import Throttle
from server.errors import QueueFull


def test_a_caller_has_so_many_calls_in_any_minute() -> None:
    now = [100.0]
    throttle = Throttle(per_minute=2, clock=lambda: now[0])
    throttle.admit("a")
    now[0] = 120.0
    throttle.admit("a")
    throttle.admit("b")
    with pytest.raises(QueueFull, match="Maximum 2 requests per minute") as refused:
        throttle.admit("a")
    assert refused.value.retry_after_s == 40
    now[0] = 160.0
    throttle.admit("a")
    with pytest.raises(QueueFull):
        throttle.admit("a")
