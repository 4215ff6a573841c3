"""Prompts with weights, as text alone."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.emphasis import MAX_WEIGHT, Piece, Section, escape, is_plain, parse, plain

#: Texts in which syntax is likely.
MARKED = st.text(st.sampled_from("ab \\()[]:.,-+0123456789BREAK\nü🐈"), max_size=60) | st.lists(
    st.sampled_from(["(", ")", "[", "]", ":1.3)", ":", "\\", "cat", " ", "BREAK", ":-1)", ":.5)", "1"]), max_size=40
).map("".join)


def told(prompt: str) -> list[list[tuple[str, float]]]:
    return [[(piece.text, round(piece.weight, 4)) for piece in section] for section in parse(prompt)]


def one(*pieces: tuple[str, float]) -> list[list[tuple[str, float]]]:
    return [list(pieces)]


@pytest.mark.parametrize(
    ("prompt", "meaning"),
    [
        ("a (cat) sat", one(("a ", 1), ("cat", 1.1), (" sat", 1))),
        ("((cat))", one(("cat", 1.21))),
        ("[cat]", one(("cat", 0.9091))),
        ("(cat:1.3)", one(("cat", 1.3))),
        ("(cat: .5 )", one(("cat", 0.5))),
        ("(cat:-1)", one(("cat", -1))),
        ("(a (red:2) cat:1.5)", one(("a ", 1.5), ("red", 3), (" cat", 1.5))),
        ("([cat])", one(("cat", 1))),
        (
            "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
            # The first bracket has no partner.
            [
                [
                    ("a (", 1), ("house", 1.43), (" ", 1), ("on", 0.9091), (" a ", 1), ("hill", 0.5), (", sun, ", 1),
                    ("sky", 1.331), (".", 1),
                ]
            ],
        ),
        (r"\(cat\) \[dog\]", one(("(cat) [dog]", 1))),
        (r"a\b \\c", one((r"a\b \\c", 1))),
        (r"\\(cat)", one(("\\", 1), ("cat", 1.1))),
        ("f/1.4, ISO: 200)", one(("f/1.4, ISO: 200)", 1))),
        ("(cat:1.3", one(("(cat:1.3", 1))),
        ("cat:1.3)", one(("cat:1.3)", 1))),
        ("(cat]", one(("(cat]", 1))),
        ("([cat)]", one(("[cat", 1.1), ("]", 1))),
        (")(", one((")(", 1))),
        ("()", one(("", 1))),
        ("", one(("", 1))),
        ("[cat:dog:0.5]", one(("cat:dog:0.5", 0.9091))),
        ("(cat:nan) (dog:1e5)", one(("cat:nan", 1.1), (" ", 1), ("dog:1e5", 1.1))),
        ("a cat BREAK a dog", [[("a cat", 1)], [("a dog", 1)]]),
        ("(a BREAK b:2)c", [[("a", 2)], [("b", 2), ("c", 1)]]),
        ("BREAK BREAK a BREAK", one(("a", 1))),
        ("a BREAKfast", one(("a BREAKfast", 1))),
    ],
)  # fmt: skip
def test_worked_examples(prompt: str, meaning: list[list[tuple[str, float]]]) -> None:
    assert told(prompt) == meaning


@given(MARKED | st.text())
def test_parsing_never_fails_and_weights_are_finite(prompt: str) -> None:
    sections = parse(prompt)
    assert sections and all(sections)
    for section in sections:
        assert all(math.isfinite(piece.weight) and abs(piece.weight) <= MAX_WEIGHT for piece in section)
        assert all(piece.text for piece in section) or sections == ((Piece(""),),)


@given(st.text().filter(lambda text: not set(text) & set("()[]") and "BREAK" not in text))
def test_a_text_without_brackets_is_unchanged(text: str) -> None:
    assert parse(text) == ((Piece(text),),)


@given(MARKED.filter(lambda text: "BREAK" not in text) | st.text().filter(lambda text: "BREAK" not in text))
def test_what_is_escaped_is_the_text_itself(text: str) -> None:
    sections = parse(escape(text))
    assert is_plain(sections)
    assert plain(sections) == text


@given(st.lists(st.sampled_from(["()", "[]", "2", "0.5"]), max_size=6))
def test_weights_multiply(pairs: list[str]) -> None:
    prompt, weight = "cat", 1.0
    for pair in pairs:
        if pair in ("()", "[]"):
            prompt = pair[0] + prompt + pair[1]
            weight *= {"()": 1.1, "[]": 1 / 1.1}[pair]
        else:
            prompt = f"({prompt}:{pair})"
            weight *= float(pair)
    ((piece,),) = parse(prompt)
    assert piece.text == "cat"
    assert piece.weight == pytest.approx(max(-MAX_WEIGHT, min(MAX_WEIGHT, weight)))


@pytest.mark.parametrize("unit", ["(", ")", "[(", "(a", ":1", ":1)", "1", "\\", "\\(", " ", "BREAK ", "([)]", ": "])
def test_long_texts_are_read_in_linear_time(unit: str) -> None:
    # Quadratic, these would take minutes.
    text = unit * (200_000 // len(unit))
    assert len(plain(parse(text))) <= len(text)
    assert plain(parse("(" * 50_000 + "cat" + ")" * 50_000)) == "cat"


def test_plain_joins_what_is_left() -> None:
    sections: tuple[Section, ...] = parse("a (red:1.3) cat BREAK [dog]")
    assert plain(sections) == "a red cat dog"
    assert not is_plain(sections)
