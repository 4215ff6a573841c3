"""Percent-encoding undone."""

from __future__ import annotations

import random
import time
from urllib.parse import unquote_to_bytes

import pytest

from server import percent
from server.percent import percent_decoded


@pytest.mark.parametrize("data", [b"", b"a", b"%", b"%4", b"%41", b"a%4", b"%%41", b"%zz%4z%z4", b"%e6%A9%8b+%00"])
def test_it_is_undone_as_the_standard_library_does(data: bytes) -> None:
    assert percent_decoded(data) == unquote_to_bytes(data)


def test_pieces_never_part_an_escape(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(percent, "_PIECE", 5)
    drawn = random.Random(0)
    for _ in range(500):
        data = bytes(drawn.choices(b"%%%4aG", k=drawn.randrange(40)))
        assert percent_decoded(data) == unquote_to_bytes(data)


def test_long_texts_are_undone_fast() -> None:
    began = time.perf_counter()
    assert percent_decoded(b"%41" * 2**20) == b"A" * 2**20
    assert time.perf_counter() - began < 1
