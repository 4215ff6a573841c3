"""From what a client asked to what is drawn."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.complete import complete, least_strength
from pipelines.draft import Defaults, ImageDraft, SafetyRules
from pipelines.errors import CheckerMissing, InvalidRequest
from pipelines.model import Limits, ModelSpec
from pipelines.request import ImageRequest, Sigmas, Task
from pipelines.sizes import fit, scale_into

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


def test_embeddings_are_named_once_and_flux_has_none() -> None:
    draft = replace(DRAFT, embeddings=("b", "a", "b"))
    assert complete(draft, MODEL, FALLBACK).request.embeddings == ("b", "a")
    completed = complete(draft, replace(MODEL, id="flux", family="flux"), FALLBACK)
    assert completed.request.embeddings == ()
    assert completed.warnings == ("embeddings were not used: flux reads no textual inversions.",)


def test_clip_skip_is_the_clients_then_the_models_then_the_dialects() -> None:
    documented, model = replace(FALLBACK, clip_skip=2), replace(MODEL, clip_skip=3)
    assert complete(DRAFT, MODEL, FALLBACK).request.clip_skip == 1
    assert complete(DRAFT, MODEL, documented).request.clip_skip == 2
    assert complete(DRAFT, model, documented).request.clip_skip == 3
    assert complete(replace(DRAFT, clip_skip=4), model, documented).request.clip_skip == 4


@pytest.mark.parametrize(
    ("model", "size", "first"),
    [
        (MODEL, (1024, 1024), (512, 512)),
        (MODEL, (1024, 576), (680, 384)),
        (replace(MODEL, width=768, height=768), (1024, 1024), (768, 768)),
        (replace(MODEL, family="sdxl", limits=Limits(max_side=2048, max_pixels=2**22)), (2048, 1024), (1448, 720)),
        (replace(MODEL, family="flux", limits=Limits(max_side=2048, multiple=16)), (2048, 512), None),
        (MODEL, (512, 512), None),
        (MODEL, (1024, 64), None),
    ],
)
def test_the_first_of_two_passes_has_the_models_own_area_and_the_asked_proportions(
    model: ModelSpec, size: tuple[int, int], first: tuple[int, int] | None
) -> None:
    completed = complete(replace(DRAFT, width=size[0], height=size[1], highres=True), model, FALLBACK)
    assert completed.request.highres == first
    assert (completed.request.width, completed.request.height) == size
    assert any("highres_fix was not used" in one for one in completed.warnings) is (first is None)
    assert complete(replace(DRAFT, width=size[0], height=size[1]), model, FALLBACK).request.highres is None


@pytest.mark.parametrize(
    ("draft", "model"),
    [
        (replace(DRAFT, image="0" * 64, image_size=(1024, 1024)), MODEL),
        (replace(DRAFT, width=1024, height=1024), replace(MODEL, tasks=frozenset({Task.TEXT2IMG}))),
    ],
)
def test_two_passes_need_a_prompt_alone_and_a_model_that_goes_on_from_a_picture(
    draft: ImageDraft, model: ModelSpec
) -> None:
    completed = complete(replace(draft, highres=True), model, FALLBACK)
    assert completed.request.highres is None
    assert completed.warnings[-1].startswith("highres_fix was not used:")


def test_a_family_without_clip_layers_has_no_clip_skip() -> None:
    flux = replace(MODEL, id="flux", family="flux")
    completed = complete(replace(DRAFT, clip_skip=2), flux, FALLBACK)
    assert completed.request.clip_skip == 1
    assert completed.warnings == ("Not used by flux: clip_skip.",)


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


# Input images

IMG2IMG = replace(DRAFT, image="a" * 64, image_size=(320, 200))
INPAINT = replace(IMG2IMG, mask="b" * 64)


def size_of(draft: ImageDraft, limits: Limits = MODEL.limits) -> tuple[int, int, tuple[str, ...]]:
    completed = complete(draft, replace(MODEL, width=768, height=768, limits=limits), FALLBACK)
    return completed.request.width, completed.request.height, completed.warnings


def test_the_inputs_go_into_the_request() -> None:
    request = complete(replace(INPAINT, strength=0.5), MODEL, FALLBACK).request
    assert (request.image, request.mask, request.strength) == ("a" * 64, "b" * 64, 0.5)
    assert [complete(draft, MODEL, FALLBACK).request.task for draft in (DRAFT, IMG2IMG, INPAINT)] == list(Task)


def test_the_size_is_the_inputs_unless_another_is_asked_for() -> None:
    assert size_of(IMG2IMG) == (320, 200, ())
    assert size_of(INPAINT) == (320, 200, ())
    assert size_of(replace(IMG2IMG, width=128, height=64)) == (128, 64, ())
    assert size_of(replace(INPAINT, width=128)) == (128, 200, ())
    assert size_of(replace(INPAINT, height=67)) == (320, 64, ("height 67 was lowered to 64.",))
    assert size_of(replace(INPAINT, width=0)) == (64, 200, ("width 0 was raised to 64.",))


def test_one_side_alone_does_not_distort_img2img() -> None:
    assert size_of(replace(IMG2IMG, width=128)) == (320, 200, ("width 128 was not used: it needs the other side.",))


@pytest.mark.parametrize(
    ("size", "limits", "fitted"),
    [
        ((321, 207), Limits(), (320, 200)),
        ((321, 207), Limits(multiple=16), (320, 192)),
        ((4000, 1000), Limits(), (1024, 256)),
        ((2000, 2000), Limits(max_side=4096, max_pixels=512 * 512), (512, 512)),
        ((10, 20), Limits(), (64, 128)),
        ((1, 1), Limits(min_side=256), (256, 256)),
        ((1, 8192), Limits(), (64, 1024)),
    ],
)
def test_an_input_is_scaled_as_a_whole(size: tuple[int, int], limits: Limits, fitted: tuple[int, int]) -> None:
    warning = f"The input's size {size[0]} x {size[1]} was changed to {fitted[0]} x {fitted[1]}."
    assert size_of(replace(IMG2IMG, image_size=size), limits) == (*fitted, (warning,))


@given(st.integers(1, 8192), st.integers(1, 8192), st.sampled_from([8, 16, 64]))
def test_every_input_ends_inside_the_limits(width: int, height: int, multiple: int) -> None:
    limits = Limits(min_side=72, max_side=2048, max_pixels=1024 * 1024, multiple=multiple)
    fitted = scale_into(width, height, limits)
    assert all(side % multiple == 0 and 72 <= side <= 2048 for side in fitted)
    assert fitted[0] * fitted[1] <= limits.max_pixels


@pytest.mark.parametrize("steps", range(1, 151))
def test_the_least_strength_draws_one_step(steps: int) -> None:
    strength = least_strength(steps)
    assert int(steps * strength) == 1
    # Flux counts the steps that it leaves out.
    assert int(steps - steps * strength) == steps - 1
    assert strength == pytest.approx(1 / steps)


@pytest.mark.parametrize(
    ("asked", "used", "warnings"),
    [
        (None, 0.7, ()),
        (0.3, 0.3, ()),
        (1.0, 1.0, ()),
        (1.5, 1.0, ("strength 1.5 was lowered to 1.",)),
        (0.0, 0.25, ("strength 0 was raised to 0.25.",)),
        (0.2, 0.25, ("strength 0.2 was raised to 0.25.",)),
    ],
)
def test_strength_is_clamped(asked: float | None, used: float, warnings: tuple[str, ...]) -> None:
    completed = complete(replace(IMG2IMG, strength=asked, steps=4), MODEL, FALLBACK)
    assert (completed.request.strength, completed.warnings) == (used, warnings)


def test_text2img_has_no_strength() -> None:
    assert complete(replace(DRAFT, strength=0.3), MODEL, FALLBACK).request.strength == 1.0


def test_true_cfg_needs_a_distilled_family_and_a_negative_prompt() -> None:
    flux = replace(MODEL, id="flux", family="flux")
    asked = replace(DRAFT, true_cfg=4.0, negative_prompt="blurry")
    cases = [
        (asked, flux, 4.0, ()),
        (replace(asked, true_cfg=99.0), flux, 10.0, ("true_cfg 99 was lowered to 10.",)),
        (replace(asked, true_cfg=0.5), flux, 1.0, ("Not used by flux: negative_prompt (without true_cfg).",)),
        (replace(asked, negative_prompt=None), flux, 1.0, ("true_cfg was not used: it needs a negative prompt.",)),
        (asked, MODEL, 1.0, ("true_cfg was not used: sd15 has classifier-free guidance of its own.",)),
    ]
    for draft, model, used, warnings in cases:
        completed = complete(draft, model, FALLBACK)
        assert (completed.request.true_cfg, completed.warnings) == (used, warnings)


def test_a_task_that_the_model_does_not_do_is_refused() -> None:
    fill = replace(MODEL, id="flux-fill", tasks=frozenset({Task.INPAINT}))
    assert complete(INPAINT, fill, FALLBACK).request.task is Task.INPAINT
    with pytest.raises(InvalidRequest, match=r"^flux-fill draws inpaint, not img2img\.$"):
        complete(IMG2IMG, fill, FALLBACK)


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


UNUSED = ("The safety checker was not used: its weights are not here.",)
FORCED = ("The safety checker was used: this server draws nothing without it.",)
FOG = ("Unknown safety checker type 'fog': sensitive_content_text was used.",)


@pytest.mark.parametrize(
    ("asked", "kind", "rules", "expected"),
    [
        (None, None, {}, (None, ())),
        (False, "blur", {"default": True}, (None, ())),
        (True, None, {}, ("sensitive_content_text", ())),
        (True, " BLUR", {"type": "black"}, ("blur", ())),
        (None, None, {"default": True, "type": "black"}, ("black", ())),
        (None, None, {"force": True}, ("sensitive_content_text", ())),
        (False, "pixelate", {"force": True}, ("pixelate", FORCED)),
        (True, "fog", {}, ("sensitive_content_text", FOG)),
        (False, "fog", {}, (None, ())),
        (True, "fog", {"available": False}, (None, UNUSED)),
        (None, None, {"default": True, "available": False}, (None, UNUSED)),
        (None, None, {"available": False}, (None, ())),
    ],
)  # fmt: skip
def test_the_safety_checker_is_used_where_it_is_wanted_and_there(
    asked: bool | None, kind: str | None, rules: dict[str, Any], expected: tuple[str | None, tuple[str, ...]]
) -> None:
    draft = replace(DRAFT, safety=asked, safety_type=kind)
    completed = complete(draft, MODEL, FALLBACK, safety=SafetyRules(**{"available": True, **rules}))
    assert (completed.request.safety, completed.warnings) == expected


@pytest.mark.parametrize("asked", [None, False, True])
def test_nothing_is_drawn_where_everything_must_be_checked_and_cannot(asked: bool | None) -> None:
    with pytest.raises(CheckerMissing, match="weights are not here"):
        complete(replace(DRAFT, safety=asked), MODEL, FALLBACK, safety=SafetyRules(force=True))
