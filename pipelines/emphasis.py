r"""AUTOMATIC1111's prompt syntax: which parts of a text weigh more or less, and where a new chunk begins.

``(x)`` weighs 1.1 times, ``[x]`` 1 / 1.1 times, ``(x:1.3)`` 1.3 times as much, and brackets inside brackets multiply.
``\(``, ``\)``, ``\[``, ``\]`` are the brackets themselves, ``BREAK`` begins a chunk. Brackets without a partner are
themselves, too. Source: https://github.com/AUTOMATIC1111/stable-diffusion-webui/wiki/Features#attentionemphasis
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

#: What one pair of brackets multiplies or divides by.
STRENGTH = 1.1
#: Weights beyond, of either sign, are this: a thousand brackets must not overflow.
MAX_WEIGHT = 10.0

# Backslashes count only before a bracket, so that a text without brackets is what it is. Repetitions are bounded or
# begin where nothing alike stands before: thousands of digits or backslashes must not be read again from each of them.
_MARKS = re.compile(
    r"(?P<escape>(?<!\\)\\+)(?P<escaped>[()\[\]])"
    r"|(?P<opening>[(\[])"
    r"|:\s{0,9}(?P<weight>[+-]?(?:\d{1,9}(?:\.\d{0,9})?|\.\d{1,9}))\s{0,9}\)"
    r"|(?P<closing>[)\]])"
)
_BREAK = re.compile(r"\bBREAK\b")
_BRACKETS = re.compile(r"(?<!\\)(\\*)([()\[\]])")
_OPENING = {")": "(", "]": "["}


@dataclass(frozen=True)
class Piece:
    """A stretch of text of one weight."""

    text: str
    weight: float = 1.0


#: What lies between two BREAKs: at least one piece, the only one without text being that of an empty prompt.
Section = tuple[Piece, ...]


@dataclass
class _Mark:
    """Text, or a bracket that is text unless it has a partner."""

    text: str
    #: "(", "[", ")" or "]"; empty for text.
    bracket: str = ""
    #: Of a closing bracket: what its pair multiplies by.
    factor: float = 1.0
    paired: bool = False


def parse(prompt: str) -> tuple[Section, ...]:
    """The sections of a prompt, at least one. Never raises; without brackets and BREAK it is one piece, unchanged."""
    marks = list(_marks(prompt))
    _pair(marks)
    sections: list[list[Piece]] = [[]]
    for piece in _merged(_weighed(marks)):
        texts = _BREAK.split(piece.text)
        # The spaces around it are its own.
        texts[:-1] = [text.rstrip() for text in texts[:-1]]
        texts[1:] = [text.lstrip() for text in texts[1:]]
        sections[-1].append(Piece(texts[0], piece.weight))
        sections += [[Piece(text, piece.weight)] for text in texts[1:]]
    kept = [tuple(piece for piece in section if piece.text) for section in sections]
    # Nothing between two BREAKs, or before the first, begins no chunk.
    return tuple(section for section in kept if section) or ((Piece(""),),)


def plain(sections: Iterable[Section]) -> str:
    """The text without weights."""
    return " ".join("".join(piece.text for piece in section) for section in sections)


def is_plain(sections: tuple[Section, ...]) -> bool:
    """Nothing is weighted or broken."""
    return len(sections) == 1 and all(piece.weight == 1.0 for piece in sections[0])


def escape(text: str) -> str:
    """The prompt that means this text, brackets and all."""
    return _BRACKETS.sub(r"\1\1\\\2", text)


def _marks(prompt: str) -> Iterator[_Mark]:
    end = 0
    for found in _MARKS.finditer(prompt):
        if found.start() > end:
            yield _Mark(prompt[end : found.start()])
        end = found.end()
        if found["escape"]:
            # Pairs are backslashes; one left over makes the bracket a text.
            pairs, escapes = divmod(len(found["escape"]), 2)
            yield _Mark("\\" * pairs)
            yield _Mark(found["escaped"]) if escapes else _bracket(found["escaped"])
        elif found["weight"]:
            yield _Mark(found[0], ")", float(found["weight"]))
        else:
            yield _bracket(found[0])
    yield _Mark(prompt[end:])


def _bracket(character: str) -> _Mark:
    return _Mark(character, character, {")": STRENGTH, "]": 1 / STRENGTH}.get(character, 1.0))


def _pair(marks: list[_Mark]) -> None:
    """Marks brackets that have a partner; an opening one that another pair closes over has none."""
    opened: list[_Mark] = []
    waiting = {"(": 0, "[": 0}
    for mark in marks:
        if mark.bracket in waiting:
            opened.append(mark)
            waiting[mark.bracket] += 1
        elif mark.bracket and waiting[_OPENING[mark.bracket]]:
            while True:
                partner = opened.pop()
                waiting[partner.bracket] -= 1
                if partner.bracket == _OPENING[mark.bracket]:
                    break
            partner.factor, partner.paired, mark.paired = mark.factor, True, True


def _weighed(marks: list[_Mark]) -> Iterator[Piece]:
    weights = [1.0]
    for mark in marks:
        if not mark.paired:
            yield Piece(mark.text, min(max(weights[-1], -MAX_WEIGHT), MAX_WEIGHT))
        elif mark.bracket in _OPENING:
            weights.pop()
        else:
            # Bounded far outside, or a thousand brackets would be infinite, and their inside not a number.
            weights.append(min(max(weights[-1] * mark.factor, -1e30), 1e30))


def _merged(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """Neighbours of one weight as one piece: words are not cut where a bracket turned out to be text."""
    texts: list[str] = []
    weight = 1.0
    for piece in pieces:
        if not piece.text:
            continue
        if piece.weight != weight and texts:
            yield Piece("".join(texts), weight)
            texts = []
        weight = piece.weight
        texts.append(piece.text)
    if texts:
        yield Piece("".join(texts), weight)
