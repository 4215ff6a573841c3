"""Names of stored images."""

from __future__ import annotations

import re

import pytest

from server.storage.names import is_name, media_type, new_name


def test_names_hold_index_and_128_random_bits() -> None:
    assert re.fullmatch(r"3-[0-9a-f]{32}\.png", new_name(3))
    assert new_name(0) != new_name(0)


@pytest.mark.parametrize(("ending", "kind"), [("png", "image/png"), ("jpg", "image/jpeg"), ("webp", "image/webp")])
def test_media_type_comes_from_the_ending(ending: str, kind: str) -> None:
    assert media_type(new_name(0, ending)) == kind


@pytest.mark.parametrize(("index", "ending"), [(-1, "png"), (1000, "png"), (0, "html"), (0, "")])
def test_other_names_are_not_made(index: int, ending: str) -> None:
    with pytest.raises(ValueError, match="no name"):
        new_name(index, ending)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "0-" + "0" * 31 + ".png",
        "0-" + "A" * 32 + ".png",
        "0-" + "0" * 32 + ".png\n",
        "0-" + "0" * 32 + ".html",
        "٣-" + "0" * 32 + ".png",
        "../0-" + "0" * 32 + ".png",
        "/0-" + "0" * 32 + ".png",
        ".0-" + "0" * 32 + ".png.tmp",
    ],
)
def test_other_names_are_refused(name: str) -> None:
    assert not is_name(name)
