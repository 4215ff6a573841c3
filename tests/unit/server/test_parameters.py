"""What is written into pictures, and what is read from others' pictures."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from pipelines.request import ImageRequest, Sigmas
from schedulers.registry import SCHEDULERS, parse_name
from server.parameters import describe, parse, texts

REQUEST = ImageRequest(
    model="sd15",
    prompt="a (red:1.2) bridge,\nat night",
    negative_prompt="ugly, blurry",
    width=512,
    height=768,
    samples=3,
    steps=20,
    guidance=7.5,
    seed=41,
    sigmas=Sigmas.KARRAS,
    loras=(("ink", 0.8), ("toon", 1.0)),
    clip_skip=2,
)
TEXT = """a (red:1.2) bridge,
at night <lora:ink:0.8> <lora:toon:1>
Negative prompt: ugly, blurry
Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7.5, Seed: 42, Size: 512x768, Model: sd15, \
Clip skip: 2, Version: latentd"""
FOREIGN = """masterpiece, <lora:detail:0.5>a bridge, 橋
Negative prompt: worst quality,
bad hands
Steps: 30, Sampler: DPM++ 2M SDE, Schedule type: Karras, CFG scale: 6, Seed: 123, Size: 640x512, \
Model hash: 6ce0161689, Model: v1-5-pruned, Clip skip: 2, Hires upscaler: Latent, \
Lora hashes: "detail: 1a2b, other: 3c", Version: v1.10.1"""


def test_the_text_is_as_automatic1111_writes_it() -> None:
    one = replace(REQUEST, seed=42).to_json()
    assert describe(one, "DPMSolverMultistepScheduler") == TEXT


def test_the_record_holds_the_one_picture() -> None:
    written = texts(REQUEST.to_json(), job_id=7, seed=43, scheduler="DDIMScheduler")
    record = json.loads(written["latentd"])
    assert (record["version"], record["job"]) == (1, 7)
    assert ImageRequest.from_json(record["request"]) == replace(REQUEST, seed=43, samples=1)
    assert "Seed: 43" in written["parameters"]


def test_any_prompt_can_be_written() -> None:
    request = replace(REQUEST, prompt='橋\ud800\0"').to_json()
    assert texts(request, job_id=1, seed=1, scheduler="DDIMScheduler")["latentd"].isascii()


def test_our_own_text_reads_as_what_was_asked() -> None:
    assert parse(TEXT) == (
        {
            "prompt": "a (red:1.2) bridge,\nat night",
            "negative_prompt": "ugly, blurry",
            "lora_model": ["ink", "toon"],
            "lora_strength": ["0.8", "1"],
            "num_inference_steps": "20",
            "guidance_scale": "7.5",
            "seed": "42",
            "clip_skip": "2",
            "scheduler": "DPM++ 2M Karras",
            "width": 512,
            "height": 768,
            "model_id": "sd15",
        },
        [],
    )


def test_a_foreign_text_is_read_as_far_as_it_goes() -> None:
    fields, unread = parse(FOREIGN)
    assert fields["prompt"] == "masterpiece,a bridge, 橋"
    assert (fields["negative_prompt"], fields["model_id"]) == ("worst quality,\nbad hands", "v1-5-pruned")
    assert (fields["scheduler"], fields["lora_model"]) == ("DPM++ 2M SDE Karras", ["detail"])
    assert unread == ["Hires upscaler", "Lora hashes"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {"prompt": ""}),
        ("only a prompt", {"prompt": "only a prompt"}),
        ("a: b, c: d\nNegative prompt: e: f", {"prompt": "a: b, c: d", "negative_prompt": "e: f"}),
        ("x\nSteps: 4, Sampler: Foo, Schedule type: Automatic", {"prompt": "x", "scheduler": "Foo"}),
        ('x\nSteps: 4, Size: wide, Model: "a, b"', {"prompt": "x", "model_id": "a, b"}),
    ],
)
def test_what_is_missing_is_left_out(text: str, expected: dict[str, Any]) -> None:
    fields, _ = parse(text)
    fields.pop("num_inference_steps", None)
    assert fields == expected


def algorithms() -> list[tuple[str, str | None]]:
    sde = "sde-dpmsolver++"
    return [(name, None) for name in SCHEDULERS] + [
        (name, sde) for name, row in SCHEDULERS.items() if sde in row.algorithms
    ]


@pytest.mark.parametrize(("name", "algorithm"), algorithms())
def test_every_sampler_is_written_so_that_it_is_read_as_itself(name: str, algorithm: str | None) -> None:
    text = describe(replace(REQUEST, algorithm_type=algorithm).to_json(), name)
    alias = parse_name(str(parse(text)[0]["scheduler"]))
    assert alias is not None
    assert (alias.name, alias.sigmas, alias.algorithm_type) == (name, "karras", algorithm)
