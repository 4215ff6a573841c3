"""Words around prompts, and what a family leaves out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.complete import complete
from pipelines.draft import Defaults, ImageDraft
from pipelines.emphasis import parse, plain
from pipelines.model import ModelSpec
from pipelines.styles import PromptStyle, PromptStyles, spelled, styled

INK = PromptStyle(prefix="ink drawing", suffix="black on paper", negative="colour")
STYLES = PromptStyles(enhance=PromptStyle(suffix="detailed", negative="blurry"), named={"ink": INK, "pixel-art": INK})
SD15 = ModelSpec(id="sd15", family="sd15", folder=Path("sd15"))
FLUX = replace(SD15, id="flux", family="flux")
DRAFT = ImageDraft(prompt="a red bridge", seed=7)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a cat", "ink drawing, a cat, black on paper"),
        ("a cat, ", "ink drawing, a cat, black on paper"),
        ("", "ink drawing, black on paper"),
        ("  ", "ink drawing, black on paper"),
        ("(a cat:1.3)", "ink drawing, (a cat:1.3), black on paper"),
    ],
)
def test_a_styles_words_stand_around_the_prompt(prompt: str, expected: str) -> None:
    assert styled(prompt, None, INK) == (expected, "colour")
    assert styled(prompt, "a dog", INK) == (expected, "a dog, colour")


@pytest.mark.parametrize("negative", [None, "", "a dog,"])
def test_a_style_without_words_changes_nothing(negative: str | None) -> None:
    assert styled("a cat, ", negative, PromptStyle()) == ("a cat, ", negative)


@given(st.text(alphabet="ab ()[]:1.3\\,", max_size=30))
def test_weights_inside_a_prompt_stay_what_they_were(prompt: str) -> None:
    before = [piece for section in parse(prompt) for piece in section if piece.weight != 1]
    after = [piece for section in parse(styled(prompt, None, INK)[0]) for piece in section if piece.weight != 1]
    assert after == before
    assert plain(parse(styled(prompt, None, INK)[0])).endswith("black on paper")


@pytest.mark.parametrize("name", ["Pixel Art", "pixel_art", " PIXEL-ART ", "pixel  art"])
def test_a_style_is_found_in_any_spelling(name: str) -> None:
    assert STYLES.find(name) == spelled(name) == "pixel-art"


def test_nothing_is_enhanced_unless_asked() -> None:
    for enhance in (None, False):
        done = complete(replace(DRAFT, enhance=enhance), SD15, Defaults(), styles=STYLES)
        assert (done.request.prompt, done.enhanced, done.style) == ("a red bridge", False, None)


def test_a_style_comes_first_and_general_words_last() -> None:
    draft = replace(DRAFT, enhance=True, style="Ink", negative_prompt="cars")
    done = complete(draft, SD15, Defaults(), styles=STYLES)
    assert done.request.prompt == "ink drawing, a red bridge, black on paper, detailed"
    assert done.request.negative_prompt == "cars, colour, blurry"
    assert (done.enhanced, done.style, done.warnings) == (True, "ink", ())


def test_an_unknown_style_is_named_and_none_is_used() -> None:
    done = complete(replace(DRAFT, style="cubism"), SD15, Defaults(), styles=STYLES)
    assert (done.request.prompt, done.style) == ("a red bridge", None)
    assert done.warnings == ("Unknown style 'cubism': none was used.",)


def test_what_flux_lacks_is_named_in_one_sentence() -> None:
    draft = replace(DRAFT, enhance=True, style="ink", clip_skip=2, negative_prompt="cars")
    done = complete(draft, FLUX, Defaults(clip_skip=2), styles=STYLES)
    unused = "negative_prompt (without true_cfg), clip_skip, enhance_prompt, enhance_style"
    assert done.warnings == (f"Not used by flux: {unused}.",)
    assert (done.request.prompt, done.request.clip_skip, done.enhanced, done.style) == ("a red bridge", 1, False, None)


@pytest.mark.parametrize("draft", [replace(DRAFT, negative_prompt="cars", true_cfg=4.0), replace(DRAFT, clip_skip=1)])
def test_what_flux_has_or_is_the_same_without_is_not_named(draft: ImageDraft) -> None:
    assert complete(draft, FLUX, Defaults(), styles=STYLES).warnings == ()
