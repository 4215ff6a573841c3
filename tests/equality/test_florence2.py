"""Answers equal those of transformers' own calls, alone and in any batch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines import demo
from pipelines.base import Pixels
from pipelines.florence2 import Florence2, VisionRow
from pipelines.florence2_answers import Rules, Size, read_answer, to_pixels, write_places
from pipelines.florence2_tasks import TASKS, FlorenceTask, Form, Takes
from pipelines.host import Host
from pipelines.model import ModelSpec
from pipelines.quiet import quiet_libraries
from pipelines.vision import Answer, VisionRequest, VisionTask

#: Name -> (width, height): wide, tall, small, and of the network's own size.
SIZES = {"wide": (640, 48), "tall": (40, 500), "small": (7, 9), "square": (64, 64)}
PHRASE = "a red cat on the house"
REGION = (100, 50, 700, 960)


def picture(name: str) -> Pixels:
    """Blocks of colours that depend on the name."""
    width, height = SIZES.get(name, (96, 72))
    draw = np.random.default_rng(list(name.encode()))
    blocks = Image.fromarray(draw.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    return np.asarray(blocks.resize((width, height), Image.Resampling.NEAREST))


def question(task: VisionTask, image: str = "wide", **changes: Any) -> VisionRequest:
    takes = TASKS[task].takes
    values: dict[str, Any] = {
        "prompt": PHRASE if takes is Takes.TEXT else "",
        "region": REGION if takes is Takes.REGION else None,
    }
    return VisionRequest(
        **{"model": "florence", "task": task, "image": image, "max_new_tokens": 64, **values, **changes}
    )


@pytest.fixture(scope="module")
def folder(demo_folder: Path) -> Path:
    quiet_libraries()
    return demo.ensure("florence2", demo_folder)


@pytest.fixture(scope="module")
def florence(folder: Path) -> Florence2:
    spec = ModelSpec(id="florence", family="florence2", folder=folder)
    return Florence2.load(spec, Host(device=torch.device("cpu"), slots=64, read_input=picture))


@pytest.fixture(scope="module")
def stock(folder: Path) -> tuple[Any, Any]:
    from transformers import AutoProcessor, Florence2ForConditionalGeneration

    return (
        AutoProcessor.from_pretrained(str(folder), local_files_only=True),
        Florence2ForConditionalGeneration.from_pretrained(str(folder), local_files_only=True).eval(),
    )


def ask(florence: Florence2, requests: Sequence[VisionRequest]) -> list[Answer]:
    """All in one step."""
    rows = []
    for prepared in florence.prepare(requests):
        assert isinstance(prepared, list), prepared
        rows += prepared
    assert florence.step(rows) == []
    answers = florence.finish(rows)
    assert all(row.remaining == 0 for row in rows)
    assert all(isinstance(answer, Answer) for answer in answers), answers
    return [answer for answer in answers if isinstance(answer, Answer)]


def stock_answer(stock: tuple[Any, Any], request: VisionRequest) -> Any:
    """As the model card of Florence-2 shows it."""
    processor, model = stock
    task = TASKS[request.task]
    said = task.token + (write_places(request.region) if request.region else request.prompt)
    image = Image.fromarray(picture(request.image))
    inputs = processor(text=said, images=image, return_tensors="pt")
    with torch.inference_mode():
        ids = model.generate(**inputs, max_new_tokens=request.max_new_tokens, num_beams=request.beams, do_sample=False)
    written = processor.batch_decode(ids, skip_special_tokens=False)[0]
    return processor.post_process_generation(written, task=task.token, image_size=image.size)[task.token]


def in_stocks_words(answer: Answer, task: FlorenceTask) -> Any:
    """Our answer, as ``post_process_generation`` puts it."""
    boxes, outlines, quads = answer.boxes or (), answer.outlines or (), answer.quads or ()
    boxed = {"bboxes": [list(one.box) for one in boxes], "labels": [one.label for one in boxes]}
    outlined = {
        "polygons": [[list(polygon) for polygon in one.polygons] for one in outlines],
        "labels": [one.label for one in outlines],
    }
    if task.form is Form.QUADS:
        return {"quad_boxes": [list(one.quad) for one in quads], "labels": [one.label for one in quads]}
    if task.form is Form.OUTLINE:
        return outlined
    if task.form is Form.BOXES_OR_OUTLINES:
        return {
            "bboxes": boxed["bboxes"],
            "bboxes_labels": boxed["labels"],
            "polygons": outlined["polygons"],
            "polygons_labels": outlined["labels"],
        }
    return boxed


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("task", VisionTask)
def test_every_task_is_answered_as_by_transformers(
    florence: Florence2, stock: tuple[Any, Any], task: VisionTask, beams: int
) -> None:
    request = question(task, beams=beams)
    (answer,) = ask(florence, [request])
    expected = stock_answer(stock, request)
    if TASKS[task].form is Form.TEXT:
        assert answer == Answer(text=re.sub(r"<loc_[0-9]+>", "", expected).strip())
        assert answer.text
    else:
        assert in_stocks_words(answer, TASKS[task]) == expected
        # An answer without places would show nothing.
        assert answer.boxes or answer.outlines or answer.quads


@pytest.mark.parametrize("image", ["tall", "small", "square"])
def test_places_are_pixels_of_the_picture_as_it_was_sent(
    florence: Florence2, stock: tuple[Any, Any], image: str
) -> None:
    request = question(VisionTask.OBJECT_DETECTION, image)
    (answer,) = ask(florence, [request])
    assert in_stocks_words(answer, TASKS[request.task]) == stock_answer(stock, request)
    width, height = SIZES[image]
    assert answer.boxes
    for box in answer.boxes:
        left, top, right, bottom = box.box
        assert 0 <= left <= right < width and 0 <= top <= bottom < height


@pytest.mark.parametrize("beams", [1, 3])
def test_pictures_and_tasks_in_one_batch_are_answered_as_alone(florence: Florence2, beams: int) -> None:
    names = [*SIZES, "five", "six", "seven"]
    requests = [question(task, names[n % len(names)], beams=beams) for n, task in enumerate(VisionTask)]
    alone = [ask(florence, [request])[0] for request in requests]
    assert ask(florence, requests) == alone
    assert ask(florence, requests[::-1]) == alone[::-1]
    # Were they all the same, neighbours could not be told apart.
    assert len(set(alone)) > len(alone) // 2


def test_an_answer_does_not_depend_on_a_longer_neighbour(florence: Florence2) -> None:
    short = question(VisionTask.CAPTION)
    long = question(VisionTask.PHRASE_GROUNDING, "tall", prompt=" ".join(["a red cat"] * 60))
    (alone,) = ask(florence, [short])
    assert ask(florence, [short, long])[0] == alone
    assert ask(florence, [long, short])[1] == alone


@pytest.mark.parametrize("size", [(1, 1), (3, 1), (1, 3), (3, 3), (8192, 1), (1, 8192), (8192, 2000)])
def test_pictures_of_any_size_are_looked_at(folder: Path, size: tuple[int, int]) -> None:
    width, height = size
    pixels = np.full((height, width, 3), (250, 20, 20), dtype=np.uint8)
    spec = ModelSpec(id="florence", family="florence2", folder=folder)
    florence = Florence2.load(spec, Host(device=torch.device("cpu"), slots=1, read_input=lambda name: pixels))
    (answer,) = ask(florence, [question(VisionTask.OBJECT_DETECTION)])
    assert answer.boxes
    for box in answer.boxes:
        assert 0 <= box.box[0] <= box.box[2] < width and 0 <= box.box[1] <= box.box[3] < height
    # One colour is one colour, whatever the shape: nothing was taken for channels.
    flat = np.full((64, 64, 3), (250, 20, 20), dtype=np.uint8)
    seen = [florence.processor.image_processor(Image.fromarray(flat), return_tensors="pt").pixel_values]
    prepared = florence.prepare([question(VisionTask.CAPTION)])[0]
    assert isinstance(prepared, list)
    row = prepared[0]
    assert isinstance(row, VisionRow)
    looked = florence.look(row)
    assert looked is not None
    assert torch.allclose(looked[0], seen[0], atol=1e-5)


#: What each task's answer looks like when a published network writes it.
WRITTEN = {
    VisionTask.CAPTION: "A green car.",
    VisionTask.OBJECT_DETECTION: "car<loc_53><loc_333><loc_933><loc_774>wheel<loc_709><loc_576><loc_865><loc_772>"
    "<loc_150><loc_584><loc_309><loc_773>",
    VisionTask.DENSE_REGION_CAPTION: "a green car<loc_53><loc_333><loc_933><loc_774>door<loc_1><loc_2><loc_3>",
    VisionTask.REGION_PROPOSAL: "<loc_53><loc_333><loc_933><loc_774><loc_709><loc_576><loc_865><loc_772>",
    VisionTask.PHRASE_GROUNDING: "A green car<loc_53><loc_333><loc_933><loc_774>it<loc_1><loc_2><loc_3><loc_4>",
    VisionTask.REFERRING_EXPRESSION_SEGMENTATION: "<loc_279><loc_379><loc_282><loc_379><loc_290><loc_373><sep>"
    "<loc_1><loc_2><loc_3><loc_4><loc_5><loc_6>",
    VisionTask.REGION_TO_SEGMENTATION: "<loc_279><loc_379><loc_282><loc_379><loc_290><loc_373><loc_7>",
    VisionTask.OPEN_VOCABULARY_DETECTION: "cat<poly><loc_1><loc_2><loc_3><loc_4><loc_5><loc_6></poly><poly><loc_7>"
    "<loc_8><loc_9><loc_10><loc_11><loc_12><sep><loc_1><loc_2><loc_3><loc_4></poly>",
    VisionTask.OCR_WITH_REGION: "STOP<loc_100><loc_100><loc_200><loc_100><loc_200><loc_200><loc_100><loc_200>"
    "GO<loc_1><loc_2><loc_3><loc_4><loc_5><loc_6><loc_7><loc_8>",
}


@pytest.mark.parametrize("size", [(640, 480), (1, 1), (8192, 31), (777, 1333)])
@pytest.mark.parametrize("task", WRITTEN)
def test_what_is_written_is_read_as_by_transformers(stock: tuple[Any, Any], task: VisionTask, size: Size) -> None:
    row = TASKS[task]
    written = f"</s><s>{WRITTEN[task]}</s>"
    rules = Rules(banned=frozenset({"it"}))
    expected = stock[0].post_process_generation(written, task=row.token, image_size=size)[row.token]
    answer = read_answer(written, row.form, size, rules)
    assert (answer.text if row.form is Form.TEXT else in_stocks_words(answer, row)) == expected


@pytest.mark.parametrize("side", [640, 777, 1080, 1920, 3000, 8191])
def test_every_place_is_the_pixel_that_transformers_names(stock: tuple[Any, Any], side: int) -> None:
    places = torch.arange(1000)
    expected = stock[0].post_processor.dequantize(torch.stack([places, places], dim=1), (side, side))
    assert to_pixels([int(place) for place in places.repeat_interleave(2)], (side, side)) == tuple(
        expected.flatten().tolist()
    )
