"""What Florence-2 writes, literally, and what is read of it."""

from __future__ import annotations

from typing import Any

import pytest

from pipelines.florence2_answers import Rules, Size, read_answer, to_places, write_places
from pipelines.florence2_tasks import TASKS
from pipelines.vision import Answer, Box, Outline, Quad, VisionTask

CAR = "car<loc_53><loc_333><loc_933><loc_774>"
WHEELS = "wheel<loc_709><loc_576><loc_865><loc_772><loc_150><loc_584><loc_309><loc_773>"
STOP = "STOP<loc_100><loc_100><loc_200><loc_100><loc_200><loc_200><loc_100><loc_200>"
#: In a picture of 640 x 480.
CAR_BOX = (34, 160, 597, 371)
WHEEL_BOXES = ((454, 276, 553, 370), (96, 280, 198, 371))


def read(task: VisionTask, text: str, size: Size = (640, 480), **rules: Any) -> Answer:
    return read_answer(text, TASKS[task].form, size, Rules(**rules))


def boxed(*boxes: tuple[str, tuple[int, int, int, int]]) -> Answer:
    return Answer(boxes=tuple(Box(label=label, box=box) for label, box in boxes))


@pytest.mark.parametrize(
    "task", [VisionTask.CAPTION, VisionTask.DETAILED_CAPTION, VisionTask.MORE_DETAILED_CAPTION, VisionTask.OCR]
)
def test_words_are_freed_of_everything_around_them(task: VisionTask) -> None:
    assert read(task, "</s><s>A green car.</s><pad><pad>") == Answer(text="A green car.")
    assert read(task, "STOP</s><pad><pad>") == Answer(text="STOP")
    assert read(task, "</s><s></s>") == Answer(text="")


@pytest.mark.parametrize(
    "task", [VisionTask.REGION_TO_CATEGORY, VisionTask.REGION_TO_DESCRIPTION, VisionTask.REGION_TO_OCR]
)
def test_words_about_a_region_do_not_repeat_where_it_is(task: VisionTask) -> None:
    assert read(task, f"<s>{CAR}</s>") == Answer(text="car")


@pytest.mark.parametrize("task", [VisionTask.OBJECT_DETECTION, VisionTask.DENSE_REGION_CAPTION])
def test_objects_have_a_label_and_a_box_each(task: VisionTask) -> None:
    expected = boxed(("car", CAR_BOX), ("wheel", WHEEL_BOXES[0]), ("wheel", WHEEL_BOXES[1]))
    assert read(task, f"</s><s>{CAR}{WHEELS}</s>") == expected


def test_proposals_are_boxes_without_labels() -> None:
    text = "<s><loc_53><loc_333><loc_933><loc_774><loc_709><loc_576><loc_865><loc_772></s>"
    assert read(VisionTask.REGION_PROPOSAL, text) == boxed(("", CAR_BOX), ("", WHEEL_BOXES[0]))


def test_phrases_that_stand_for_nothing_are_left_out() -> None:
    text = f"<s>A green {CAR}it<loc_1><loc_1><loc_2><loc_2></s>"
    assert read(VisionTask.PHRASE_GROUNDING, text, banned=frozenset({"it"})) == boxed(("A green car", CAR_BOX))


@pytest.mark.parametrize("task", [VisionTask.REFERRING_EXPRESSION_SEGMENTATION, VisionTask.REGION_TO_SEGMENTATION])
def test_an_outline_may_have_several_polygons(task: VisionTask) -> None:
    first = "<loc_279><loc_379><loc_282><loc_379><loc_290><loc_373>"
    assert read(task, f"<s>{first}</s>") == Answer(
        outlines=(Outline(label="", polygons=((178, 182, 180, 182, 185, 179),)),)
    )
    second = "<loc_0><loc_0><loc_999><loc_0><loc_999><loc_999>"
    assert read(task, f"<s>{first}<sep>{second}</s>") == Answer(
        outlines=(Outline(label="", polygons=((178, 182, 180, 182, 185, 179), (0, 0, 639, 0, 639, 479))),)
    )


def test_an_open_vocabulary_is_answered_with_boxes_or_outlines() -> None:
    task = VisionTask.OPEN_VOCABULARY_DETECTION
    assert read(task, "wheels<loc_144><loc_570><loc_870><loc_778>") == Answer(
        boxes=(Box(label="wheels", box=(92, 273, 557, 373)),), outlines=()
    )
    polygon = "<loc_0><loc_0><loc_100><loc_0><loc_100><loc_100>"
    assert read(task, f"cat<poly>{polygon}</poly><poly>{polygon}<sep>{polygon}</poly>") == Answer(
        boxes=(),
        outlines=(
            Outline(label="cat", polygons=((0, 0, 64, 0, 64, 48),)),
            Outline(label="cat", polygons=((0, 0, 64, 0, 64, 48), (0, 0, 64, 0, 64, 48))),
        ),
    )


def test_lines_of_text_have_four_corners() -> None:
    quad = (64, 48, 128, 48, 128, 96, 64, 96)
    expected = Answer(quads=(Quad(label="STOP", quad=quad), Quad(label="STOP", quad=quad)))
    assert read(VisionTask.OCR_WITH_REGION, f"</s><s>{STOP}{STOP}</s>") == expected


def test_lines_too_small_to_be_read_are_left_out() -> None:
    # The line fills one hundredth of the picture.
    assert read(VisionTask.OCR_WITH_REGION, STOP, least_area=0.009).quads
    assert not read(VisionTask.OCR_WITH_REGION, STOP, least_area=0.011).quads


@pytest.mark.parametrize(
    ("size", "box"),
    [
        ((1000, 1000), (53, 333, 933, 774)),
        ((8192, 16), (438, 5, 7647, 12)),
        ((16, 8192), (0, 2732, 14, 6344)),
        ((1, 1), (0, 0, 0, 0)),
    ],
)
def test_places_are_pixels_of_wide_and_tall_pictures(size: Size, box: tuple[int, int, int, int]) -> None:
    assert read(VisionTask.OBJECT_DETECTION, CAR, size) == boxed(("car", box))


def test_a_corner_in_the_last_place_is_inside_the_picture() -> None:
    answer = read(VisionTask.OBJECT_DETECTION, "all<loc_0><loc_0><loc_999><loc_999>", (1920, 1080))
    assert answer == boxed(("all", (0, 0, 1919, 1079)))


@pytest.mark.parametrize("task", VisionTask)
@pytest.mark.parametrize("text", ["", "</s><s>", "<loc_1>", "car<loc_1><loc_2><loc_3>", "<sep><poly></poly>", "a < b"])
def test_an_answer_that_breaks_off_has_nothing_in_it(task: VisionTask, text: str) -> None:
    answer = read(task, text)
    assert not (answer.boxes or answer.quads)
    for outline in answer.outlines or ():
        assert all(len(polygon) % 2 == 0 for polygon in outline.polygons)


def test_what_comes_before_the_break_is_kept() -> None:
    assert read(VisionTask.OBJECT_DETECTION, f"{CAR}wheel<loc_1><loc_2>") == boxed(("car", CAR_BOX))
    assert read(VisionTask.OBJECT_DETECTION, f"{CAR}<loc_1><loc_2>") == boxed(("car", CAR_BOX))


def test_labels_keep_their_letters() -> None:
    text = "café 猫<loc_53><loc_333><loc_933><loc_774>"
    assert read(VisionTask.OBJECT_DETECTION, text) == boxed(("café 猫", CAR_BOX))


def test_every_task_tells_its_kind_even_when_it_found_nothing() -> None:
    kinds = {task: set(read(task, "<s></s>").to_json()) for task in VisionTask}
    assert kinds[VisionTask.CAPTION] == {"text"}
    assert kinds[VisionTask.OBJECT_DETECTION] == {"boxes"}
    assert kinds[VisionTask.REGION_TO_SEGMENTATION] == {"outlines"}
    assert kinds[VisionTask.OPEN_VOCABULARY_DETECTION] == {"boxes", "outlines"}
    assert kinds[VisionTask.OCR_WITH_REGION] == {"quads"}


def test_pixels_become_the_places_that_hold_them() -> None:
    assert to_places((0, 0, 640, 48), (640, 48)) == (0, 0, 999, 999)
    assert to_places((64, 12, 320, 24), (640, 48)) == (100, 250, 500, 500)
    assert to_places((-5, 3, 9e9, 4), (10, 10)) == (0, 300, 999, 400)
    assert write_places((0, 10, 998, 999)) == "<loc_0><loc_10><loc_998><loc_999>"
