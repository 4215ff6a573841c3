"""What Florence-2 writes, read: words, and places in the picture.

It writes ``label<loc_x><loc_y>…``; a place is one of ``BINS`` along the picture's width or height. Polygons may be set
apart with ``<sep>``, and grouped with ``<poly>`` and ``</poly>``. Where an answer breaks off or breaks these rules,
what can be read of it is kept.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import cast

import numpy as np

from pipelines.florence2_tasks import Form
from pipelines.vision import BINS, Answer, Box, Outline, Quad

#: Around and behind an answer.
_FRAME = re.compile(r"<s>|</s>|<pad>")
_PLACE = re.compile(r"<loc_(\d+)>")
#: Words, then what belongs to them. A label has no "<": there a token begins.
_PHRASE = re.compile(r"([^<]*)((?:<loc_\d+>|<sep>|</?poly>)+)")
_GROUP = re.compile(r"<poly>(.*?)</poly>")

#: Width and height of a picture.
Size = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What a checkpoint says about reading its answers (``post_processor_config``)."""

    #: Phrases that stand for nothing in a picture ("it", "the image").
    banned: Collection[str] = frozenset()
    #: Quads that fill a smaller share of the picture are left out.
    least_area: float = 0.0


def read_answer(text: str, form: Form, size: Size, rules: Rules = Rules()) -> Answer:
    """Reads one answer about a picture of ``size`` (width, height); its places become pixels of that picture."""
    return _READERS[form](_FRAME.sub("", text), size, rules)


def find_places(text: str) -> list[int]:
    """The numbers of all places in a text."""
    return [int(number) for number in _PLACE.findall(text)]


def to_pixels(places: list[int], size: Size) -> tuple[int, ...]:
    """x, y, x, y, … from places to the pixel that holds the middle of each; a last one without a partner is left out.

    In 32 bits, as transformers computes it: where the middle falls between two pixels, the same one is named.
    """
    middles = np.array(places[: len(places) // 2 * 2], dtype=np.float32).reshape(-1, 2) + np.float32(0.5)
    per_place = np.array([side / BINS for side in size], dtype=np.float32)
    return tuple(int(value) for value in (middles * per_place).astype(np.int64).ravel())


def to_places(box: tuple[float, float, float, float], size: Size) -> tuple[int, int, int, int]:
    """Left, top, right and bottom in pixels -> the places that hold them, 0 .. ``BINS`` - 1."""
    sides = (*size, *size)
    return cast(
        tuple[int, int, int, int],
        tuple(min(max(int(at * BINS / side), 0), BINS - 1) for at, side in zip(box, sides, strict=True)),
    )


def write_places(places: tuple[int, ...]) -> str:
    """As the network reads them."""
    return "".join(f"<loc_{place}>" for place in places)


def _read_text(text: str, size: Size, rules: Rules) -> Answer:
    # About a region it repeats where that is.
    return Answer(text=_PLACE.sub("", text).strip())


def _read_boxes(text: str, size: Size, rules: Rules) -> Answer:
    return Answer(boxes=tuple(box for label, run in _phrases(text) if label for box in _boxes(label, run, size)))


def _read_bare_boxes(text: str, size: Size, rules: Rules) -> Answer:
    return Answer(boxes=tuple(box for _, run in _phrases(text) for box in _boxes("", run, size)))


def _read_phrases(text: str, size: Size, rules: Rules) -> Answer:
    named = [(label, run) for label, run in _phrases(text) if label and label not in rules.banned]
    return Answer(boxes=tuple(box for label, run in named for box in _boxes(label, run, size)))


def _read_outline(text: str, size: Size, rules: Rules) -> Answer:
    return Answer(outlines=tuple(one for _, run in _phrases(text) for one in _outlines("", run, size)))


def _read_boxes_or_outlines(text: str, size: Size, rules: Rules) -> Answer:
    if "<poly>" not in text:
        return Answer(boxes=_read_boxes(text, size, rules).boxes, outlines=())
    outlines = tuple(one for label, run in _phrases(text) if label for one in _outlines(label, run, size))
    return Answer(boxes=(), outlines=outlines)


def _read_quads(text: str, size: Size, rules: Rules) -> Answer:
    found = [(label, find_places(run)[:8]) for label, run in _phrases(text) if label]
    quads = [(label, to_pixels(places, size)) for label, places in found if len(places) == 8]
    least = rules.least_area * size[0] * size[1]
    return Answer(quads=tuple(Quad(label=label, quad=_eight(quad)) for label, quad in quads if _area(quad) >= least))


_READERS: Mapping[Form, Callable[[str, Size, Rules], Answer]] = MappingProxyType(
    {
        Form.TEXT: _read_text,
        Form.BOXES: _read_boxes,
        Form.BARE_BOXES: _read_bare_boxes,
        Form.PHRASES: _read_phrases,
        Form.OUTLINE: _read_outline,
        Form.BOXES_OR_OUTLINES: _read_boxes_or_outlines,
        Form.QUADS: _read_quads,
    }
)


def _phrases(text: str) -> Iterator[tuple[str, str]]:
    """Labels, "" where there is none, each with what follows it up to the next."""
    for label, run in _PHRASE.findall(text):
        yield label.strip(), run


def _boxes(label: str, run: str, size: Size) -> Iterator[Box]:
    places = find_places(run)
    for start in range(0, len(places) - 3, 4):
        left, top, right, bottom = to_pixels(places[start : start + 4], size)
        yield Box(label=label, box=(left, top, right, bottom))


def _outlines(label: str, run: str, size: Size) -> Iterator[Outline]:
    for group in _GROUP.findall(run) or [run]:
        polygons = [to_pixels(find_places(part), size) for part in group.split("<sep>")]
        # Fewer than two points: an answer that broke off, or a mark at the end.
        if polygons := [polygon for polygon in polygons if len(polygon) >= 4]:
            yield Outline(label=label, polygons=tuple(polygons))


def _eight(quad: tuple[int, ...]) -> tuple[int, int, int, int, int, int, int, int]:
    a, b, c, d, e, f, g, h = quad
    return a, b, c, d, e, f, g, h


def _area(quad: tuple[int, ...]) -> float:
    """Of a quadrilateral, by the shoelace formula."""
    corners = list(zip(quad[::2], quad[1::2], strict=True))
    following = corners[1:] + corners[:1]
    return abs(sum(x * v - u * y for (x, y), (u, v) in zip(corners, following, strict=True))) / 2
