"""What Prometheus reads: the engine's snapshot, jobs by state, answers by dialect and status."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

#: Upper bounds of the buckets of rows per forward.
_ROW_BUCKETS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)


class EngineSnapshot(Protocol):
    """The part of ``engine.executors.base.EngineStats`` that is published."""

    @property
    def waiting_requests(self) -> int: ...
    @property
    def oldest_wait_s(self) -> float: ...
    @property
    def running_rows(self) -> int: ...
    @property
    def forwards_total(self) -> int: ...
    @property
    def row_steps_total(self) -> int: ...
    @property
    def rows_per_forward(self) -> Mapping[int, int]: ...
    @property
    def out_of_memory_total(self) -> int: ...
    @property
    def non_finite_rows_total(self) -> int: ...
    @property
    def alive(self) -> bool: ...


class Metrics:
    """One registry; ``render`` is what a scrape answers."""

    def __init__(self, engine: Callable[[], EngineSnapshot]) -> None:
        self._registry = CollectorRegistry()
        self._collector = _EngineCollector(engine)
        self._registry.register(self._collector)
        self._answers = Counter(
            "latentd_http_requests",
            "Answers by dialect and HTTP status.",
            ("dialect", "code"),
            registry=self._registry,
        )

    def count_answer(self, dialect: str, code: int) -> None:
        """One HTTP answer went out."""
        self._answers.labels(dialect, str(code)).inc()

    def render(self, jobs: Mapping[str, int]) -> bytes:
        """The text format; ``jobs`` are the stored jobs by state."""
        self._collector.jobs = jobs
        return generate_latest(self._registry)


class _EngineCollector(Collector):
    def __init__(self, engine: Callable[[], EngineSnapshot]) -> None:
        self._engine = engine
        self.jobs: Mapping[str, int] = {}

    def describe(self) -> Iterable[Metric]:
        # Registering must not ask an engine that has not started.
        return ()

    def collect(self) -> Iterator[Metric]:
        stats = self._engine()
        yield from _gauges(stats, self.jobs)
        yield from _counters(stats)
        yield _rows_per_forward(stats.rows_per_forward)


def _gauges(stats: EngineSnapshot, jobs: Mapping[str, int]) -> Iterator[Metric]:
    by_state = GaugeMetricFamily("latentd_jobs", "Stored jobs by state.", labels=("state",))
    for state, number in jobs.items():
        by_state.add_metric((state,), number)
    yield by_state
    yield GaugeMetricFamily("latentd_queue_depth", "Jobs that wait to be drawn.", value=jobs.get("queued", 0))
    yield GaugeMetricFamily(
        "latentd_engine_waiting_requests", "Requests in the engine that have not started.", value=stats.waiting_requests
    )
    yield GaugeMetricFamily(
        "latentd_engine_oldest_wait_seconds", "How long the oldest of these waits.", value=stats.oldest_wait_s
    )
    yield GaugeMetricFamily("latentd_engine_running_rows", "Images in flight.", value=stats.running_rows)
    yield GaugeMetricFamily("latentd_engine_alive", "1 while the device thread runs.", value=float(stats.alive))


def _counters(stats: EngineSnapshot) -> Iterator[Metric]:
    yield CounterMetricFamily("latentd_forwards", "Forwards of a denoiser.", value=stats.forwards_total)
    yield CounterMetricFamily("latentd_steps", "Steps applied, summed over rows.", value=stats.row_steps_total)
    yield CounterMetricFamily(
        "latentd_out_of_memory", "Steps that did not fit the device.", value=stats.out_of_memory_total
    )
    yield CounterMetricFamily(
        "latentd_non_finite_rows", "Rows that became NaN or infinite.", value=stats.non_finite_rows_total
    )


def _rows_per_forward(forwards: Mapping[int, int]) -> Metric:
    buckets = [
        (str(float(bound)), float(sum(number for rows, number in forwards.items() if rows <= bound)))
        for bound in _ROW_BUCKETS
    ]
    buckets.append(("+Inf", float(sum(forwards.values()))))
    total = float(sum(rows * number for rows, number in forwards.items()))
    return HistogramMetricFamily("latentd_rows_per_forward", "Rows in one forward.", buckets=buckets, sum_value=total)
