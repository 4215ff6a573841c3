"""A picture cut into windows of one size that overlap, so that a network sees around what it is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Span:
    """Along one side: what the network sees, and the part of it that is kept."""

    start: int
    end: int
    kept_start: int
    kept_end: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """One tile."""

    rows: Span
    columns: Span


def cut(length: int, window: int, margin: int) -> list[Span]:
    """Spans whose kept parts are the whole of ``length``, each seen with ``margin`` around it inside the picture.

    All are ``window`` long, or as long as the picture if that is shorter. Starts are multiples of whatever all three
    are multiples of. ``window`` is more than twice ``margin``.
    """
    window = min(window, length)
    spans: list[Span] = []
    kept = 0
    while kept < length:
        start = min(max(kept - margin, 0), length - window)
        end = start + window
        kept_end = length if end == length else end - margin
        spans.append(Span(start=start, end=end, kept_start=kept, kept_end=kept_end))
        kept = kept_end
    return spans


def windows(height: int, width: int, window: int, margin: int) -> Iterator[Window]:
    """The tiles of a picture, row by row."""
    for rows in cut(height, window, margin):
        for columns in cut(width, window, margin):
            yield Window(rows=rows, columns=columns)
