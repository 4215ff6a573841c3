"""Conditions and ranges of RFC 9110."""

from __future__ import annotations

import pytest
from starlette.datastructures import Headers

from server.api.conditional import Version, find_range

VERSION = Version(etag='"abc"', modified=1_000_000_000.5)
DATE = "Sun, 09 Sep 2001 01:46:40 GMT"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("bytes=0-0", range(1)),
        ("bytes=2-4", range(2, 5)),
        ("bytes=2-", range(2, 10)),
        ("bytes=-3", range(7, 10)),
        ("bytes=-30", range(10)),
        ("bytes=5-99", range(5, 10)),
        ("Bytes = 2 - 4", range(2, 5)),
        ("bytes=10-", range(10, 10)),
        ("bytes=99-100", range(99, 10)),
        ("bytes=-0", range(10, 10)),
    ],
)
def test_a_range_is_cut_at_the_end_of_the_file(text: str, expected: range) -> None:
    assert find_range(Headers({"range": text}), 10) == expected


@pytest.mark.parametrize(
    "text", ["", "bytes", "bytes=", "bytes=-", "bytes=4-2", "bytes=a-b", "rows=0-1", "bytes=0-1,3-4", "bytes=--5",
             "bytes=+1-2", "bytes=²-³", "bytes=1" + "0" * 30 + "-"],
)  # fmt: skip
def test_what_is_no_single_range_of_bytes_is_ignored(text: str) -> None:
    assert find_range(Headers({"range": text}), 10) is None


@pytest.mark.parametrize(
    ("headers", "known"),
    [
        ({}, False),
        ({"if-none-match": '"abc"'}, True),
        ({"if-none-match": '"x", W/"abc"'}, True),
        ({"if-none-match": "*"}, True),
        ({"if-none-match": '"x"'}, False),
        ({"if-none-match": '"x"', "if-modified-since": DATE}, False),
        ({"if-modified-since": DATE}, True),
        ({"if-modified-since": "Sun, 09 Sep 2001 01:46:39 GMT"}, False),
        ({"if-modified-since": "yesterday"}, False),
    ],
)
def test_what_the_caller_has_already_is_not_sent(headers: dict[str, str], known: bool) -> None:
    assert VERSION.is_known(Headers(headers)) is known


@pytest.mark.parametrize(("value", "valid"), [(None, True), ('"abc"', True), ('W/"abc"', False), (DATE, False)])
def test_a_range_is_of_the_file_that_the_caller_began_with(value: str | None, valid: bool) -> None:
    assert VERSION.is_range_valid(Headers({} if value is None else {"if-range": value})) is valid


def test_every_answer_says_which_state_it_is_of() -> None:
    assert VERSION.headers() == {"ETag": '"abc"', "Last-Modified": DATE}
