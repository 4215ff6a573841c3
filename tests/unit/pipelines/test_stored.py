"""Requests come back from the job store as they went in, whatever they ask for."""

from __future__ import annotations

import json

import pytest

from pipelines.request import ImageRequest, Request, Sigmas
from pipelines.stored import read_request
from pipelines.vision import VisionRequest, VisionTask

IMAGE = ImageRequest(model="sd15", prompt="a cat", width=64, height=32, steps=2, guidance=5.0, seed=7)


@pytest.mark.parametrize(
    "request_",
    [
        IMAGE,
        ImageRequest(
            model="sdxl",
            prompt="",
            width=64,
            height=64,
            samples=3,
            steps=4,
            guidance=1.0,
            seed=1,
            sigmas=Sigmas.KARRAS,
            loras=(("one", 0.5),),
        ),
        VisionRequest(model="florence-2-base", task=VisionTask.CAPTION, image="0" * 64),
        VisionRequest(
            model="florence-2-base",
            task=VisionTask.REGION_TO_OCR,
            image="0" * 64,
            region=(0, 1, 998, 999),
            beams=1,
            max_new_tokens=5,
            priority=2,
        ),
    ],
)
def test_every_kind_of_request_survives_json(request_: Request) -> None:
    assert read_request(json.loads(json.dumps(request_.to_json()))) == request_


def test_jobs_from_before_there_were_kinds_are_pictures() -> None:
    stored = IMAGE.to_json()
    assert "kind" not in stored
    assert read_request(stored) == IMAGE


def test_a_question_is_one_row_and_no_file() -> None:
    question = VisionRequest(model="florence-2-base", task=VisionTask.CAPTION, image="0" * 64)
    assert (question.rows, question.pictures, question.calls) == (1, 0, 1)
    assert (IMAGE.rows, IMAGE.pictures, IMAGE.calls) == (1, 1, 2)
