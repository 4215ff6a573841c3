"""Rows of a pipeline, stepped by hand, and what a step costs around its forward."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

from pipelines.base import Pipeline, Row
from pipelines.request import ImageRequest

#: Times each set of rows is drawn; the first teaches caches and is part of the median all the same.
ROUNDS = 3


def enter(pipeline: Pipeline, requests: Sequence[ImageRequest]) -> list[Row]:
    """Prepared rows in their slots."""
    rows: list[Row] = []
    for prepared in pipeline.prepare(requests):
        assert isinstance(prepared, list), prepared
        rows += prepared
    for row in rows:
        pipeline.enter(row)
    return rows


def draw(pipeline: Pipeline, requests: Sequence[ImageRequest]) -> None:
    """All requests, as rows of shared forwards, to pixels."""
    rows = enter(pipeline, requests)
    while moving := [row for row in rows if row.remaining]:
        pipeline.step(moving)
    pipeline.finish(rows)
    for row in rows:
        pipeline.leave(row)


def around_forward(pipeline: Pipeline, network: Any, requests: Sequence[ImageRequest]) -> tuple[float, float]:
    """Median milliseconds per step around the forward of ``network``, and of the forward."""
    began_at: list[float] = []
    forward_s: list[float] = []
    around_s: list[float] = []
    hooks = (
        network.register_forward_pre_hook(lambda *_: began_at.append(time.perf_counter())),
        network.register_forward_hook(lambda *_: forward_s.append(time.perf_counter() - began_at[-1])),
    )
    for _ in range(ROUNDS):
        rows = enter(pipeline, requests)
        while moving := [row for row in rows if row.remaining]:
            began = time.perf_counter()
            pipeline.step(moving)
            around_s.append(time.perf_counter() - began - forward_s[-1])
        for row in rows:
            pipeline.leave(row)
    for hook in hooks:
        hook.remove()
    return 1e3 * statistics.median(around_s), 1e3 * statistics.median(forward_s)
