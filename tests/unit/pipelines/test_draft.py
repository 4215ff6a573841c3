"""From what a client asked to what is drawn."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.draft import Defaults, ImageDraft, complete, fit
from pipelines.model import Limits, ModelSpec
from pipelines.request import ImageRequest, Sigmas

MODEL = ModelSpec(id="sd15", family="sd15", folder=Path("sd15"))
FALLBACK = Defaults(width=512, height=512, steps=31, guidance=7.5, max_steps=50, min_guidance=1, max_guidance=20)
DRAFT = ImageDraft(prompt="a red bridge", seed=7)


def test_what_is_left_out_takes_the_dialects_default() -> None:
    completed = complete(DRAFT, MODEL, FALLBACK)
    assert completed.request == ImageRequest(
        model="sd15", prompt="a red bridge", width=512, height=512, steps=31, guidance=7.5, seed=7
    )
    assert completed.warnings == ()


def test_the_models_default_wins_over_the_dialects() -> None:
    lightning = replace(MODEL, width=1024, height=768, steps=4, guidance=0.0, scheduler="EulerDiscreteScheduler")
    request = complete(DRAFT, lightning, FALLBACK).request
    assert (request.width, request.height, request.steps, request.guidance) == (1024, 768, 4, 0.0)
    assert request.scheduler == "EulerDiscreteScheduler"


def test_what_is_asked_wins_over_both() -> None:
    draft = replace(DRAFT, width=640, height=384, steps=12, guidance=3.5, samples=2, reproducible=False)
    request = complete(draft, replace(MODEL, steps=4, guidance=0.0), FALLBACK, reproducible=True).request
    assert (request.width, request.height, request.steps, request.guidance) == (640, 384, 12, 3.5)
    assert (request.samples, request.reproducible) == (2, False)


def test_the_servers_reproducible_holds_where_the_draft_is_silent() -> None:
    assert complete(DRAFT, MODEL, FALLBACK, reproducible=True).request.reproducible


def test_everything_out_of_range_is_clamped_and_named() -> None:
    draft = replace(DRAFT, width=1001, height=5000, samples=9, steps=500, guidance=0.0)
    completed = complete(draft, MODEL, FALLBACK)
    request = completed.request
    assert (request.width, request.height, request.samples, request.steps) == (1000, 1024, 4, 50)
    assert request.guidance == 1
    assert completed.warnings == (
        "width 1001 was lowered to 1000.",
        "height 5000 was lowered to 1024.",
        "samples 9 was lowered to 4.",
        "steps 500 was lowered to 50.",
        "guidance 0 was raised to 1.",
    )


def test_a_random_seed_has_32_bits() -> None:
    seeds = {complete(replace(DRAFT, seed=None), MODEL, FALLBACK).request.seed for _ in range(50)}
    assert len(seeds) > 1
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_too_many_pixels_keep_their_proportion() -> None:
    assert fit(2048, 1024, Limits(max_side=4096, max_pixels=512 * 256)) == (512, 256)
    assert fit(10**18, 10**18, Limits(max_side=10**9, max_pixels=256 * 256)) == (256, 256)


def test_demo_models_take_64_pixels() -> None:
    assert fit(64, 64, Limits()) == (64, 64)
    assert fit(-5, 1, Limits()) == (64, 64)


@given(
    st.integers(-(2**63), 2**63), st.integers(-(2**63), 2**63), st.sampled_from([8, 16, 64]), st.sampled_from([64, 72])
)
def test_every_size_ends_inside_the_limits(width: int, height: int, multiple: int, low: int) -> None:
    limits = Limits(min_side=low, max_side=2048, max_pixels=1024 * 1024, multiple=multiple)
    fitted = fit(width, height, limits)
    assert all(side % multiple == 0 and low <= side <= 2048 for side in fitted)
    assert fitted[0] * fitted[1] <= limits.max_pixels


@given(st.integers(64, 1024), st.integers(64, 1024))
def test_a_size_that_fits_is_only_rounded_down(width: int, height: int) -> None:
    assert fit(width, height, Limits()) == (width // 8 * 8, height // 8 * 8)


@pytest.mark.parametrize(
    ("text", "name", "sigmas", "algorithm"),
    [
        ("UniPCMultistepScheduler", "UniPCMultistepScheduler", Sigmas.DEFAULT, None),
        ("euler a", "EulerAncestralDiscreteScheduler", Sigmas.DEFAULT, None),
        ("DPM++ 2M Karras", "DPMSolverMultistepScheduler", Sigmas.KARRAS, None),
        ("DPM++ 2M SDE", "DPMSolverMultistepScheduler", Sigmas.DEFAULT, "sde-dpmsolver++"),
    ],
)
def test_a_schedulers_name_brings_its_options(text: str, name: str, sigmas: Sigmas, algorithm: str | None) -> None:
    completed = complete(replace(DRAFT, scheduler=text), MODEL, FALLBACK)
    request = completed.request
    assert (request.scheduler, request.sigmas, request.algorithm_type) == (name, sigmas, algorithm)
    assert completed.warnings == ()


def test_explicit_sigmas_win_over_the_names() -> None:
    draft = replace(DRAFT, scheduler="DPM++ 2M Karras", sigmas=Sigmas.DEFAULT)
    assert complete(draft, MODEL, FALLBACK).request.sigmas is Sigmas.DEFAULT


def test_an_unknown_scheduler_is_answered_by_the_models_own() -> None:
    completed = complete(replace(DRAFT, scheduler="Foo"), replace(MODEL, scheduler="EulerDiscreteScheduler"), FALLBACK)
    assert completed.request.scheduler == "EulerDiscreteScheduler"
    assert completed.warnings == ("Unknown scheduler 'Foo': the model's own was used.",)


def test_options_that_the_scheduler_lacks_are_dropped_and_named() -> None:
    draft = replace(DRAFT, scheduler="DDIM", sigmas=Sigmas.KARRAS, algorithm_type="dpmsolver++")
    completed = complete(draft, MODEL, FALLBACK)
    assert (completed.request.sigmas, completed.request.algorithm_type) == (Sigmas.DEFAULT, None)
    assert completed.warnings == (
        "DDIMScheduler has no karras sigmas: its own were used.",
        "DDIMScheduler has no algorithm_type 'dpmsolver++': its own was used.",
    )
