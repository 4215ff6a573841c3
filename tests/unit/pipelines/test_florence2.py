"""Florence-2: what it refuses to answer, and what it refuses to load."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipelines import demo
from pipelines.base import Pixels
from pipelines.checkpoint import Checkpoint
from pipelines.demo.clip import WORDS
from pipelines.errors import BrokenCheckpoint, Error, InvalidRequest, OutOfMemory
from pipelines.florence2 import Florence2, VisionRow
from pipelines.florence2_tasks import TASKS, find_task
from pipelines.host import Host
from pipelines.model import ModelSpec, Offload
from pipelines.quiet import quiet_libraries
from pipelines.request import ImageRequest
from pipelines.vision import Answer, VisionRequest, VisionTask


class Gone(Error):
    """A picture that is not there."""


def picture(name: str) -> Pixels:
    if name == "gone":
        raise Gone("An input image of this request is no longer stored.")
    return np.full((32, 48, 3), 99, dtype=np.uint8)


@pytest.fixture(scope="module")
def folder(demo_folder: Path) -> Path:
    quiet_libraries()
    return demo.ensure("florence2", demo_folder)


@pytest.fixture(scope="module")
def florence(folder: Path) -> Florence2:
    return load(folder)


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Callable[..., Path]:
    """A copy whose JSON files are changed: ``copy(config={…})``."""

    def make(**changes: dict[str, Any]) -> Path:
        target = tmp_path / "copy"
        shutil.copytree(folder, target)
        for name, values in changes.items():
            file = target / f"{name}.json"
            file.write_text(json.dumps(json.loads(file.read_text()) | values))
        return target

    return make


def load(folder: Path, **changes: Any) -> Florence2:
    spec = ModelSpec(id="florence", family="florence2", folder=folder, **changes)
    return Florence2.load(spec, Host(device=torch.device("cpu"), slots=8, read_input=picture))


def question(task: VisionTask = VisionTask.CAPTION, **changes: Any) -> VisionRequest:
    return VisionRequest(**{"model": "florence", "task": task, "image": "picture", "beams": 1, **changes})


def prepare(florence: Florence2, request: VisionRequest) -> Any:
    (prepared,) = florence.prepare([request])
    return prepared


def test_a_prompt_as_long_as_fits_is_read_and_a_longer_one_is_refused(florence: Florence2) -> None:
    task = VisionTask.PHRASE_GROUNDING
    fixed = len(prepare(florence, question(task, prompt="cat"))[0].tokens) - 1
    fits = prepare(florence, question(task, prompt=" ".join(["cat"] * (1024 - fixed))))
    assert len(fits[0].tokens) == 1024
    florence.step(fits)
    assert isinstance(florence.finish(fits)[0], Answer)
    refused = prepare(florence, question(task, prompt=" ".join(["cat"] * (1024 - fixed + 1))))
    assert isinstance(refused, InvalidRequest)
    assert refused.field == "prompt" and "tokens" in str(refused)


@pytest.mark.parametrize("token", ["<image>", "</s>", "<pad>", "<sep>"])
def test_a_prompt_cannot_end_the_question_or_bring_pictures(florence: Florence2, token: str) -> None:
    refused = prepare(florence, question(VisionTask.PHRASE_GROUNDING, prompt=f"a {token} cat"))
    assert isinstance(refused, InvalidRequest)
    assert token in str(refused)


def test_the_name_of_another_task_in_a_prompt_is_only_text(florence: Florence2) -> None:
    (row,) = prepare(florence, question(VisionTask.PHRASE_GROUNDING, prompt="a <OD> cat"))
    said = florence.processor.tokenizer.decode(row.tokens, skip_special_tokens=False)
    assert said.endswith("<s>Locate the phrases in the caption: a <OD> cat</s>")


def test_a_task_about_a_region_needs_one(florence: Florence2) -> None:
    refused = prepare(florence, question(VisionTask.REGION_TO_OCR))
    assert isinstance(refused, InvalidRequest)
    assert refused.field == "region"


def test_a_picture_that_is_gone_fails_alone(florence: Florence2) -> None:
    rows = [row for (row,) in florence.prepare([question(), question(image="gone"), question()])]  # type: ignore[misc]
    florence.step(rows)
    first, gone, last = florence.finish(rows)
    assert isinstance(gone, Gone)
    assert isinstance(first, Answer) and first == last


def test_pictures_that_are_all_gone_cost_no_call(florence: Florence2) -> None:
    rows = prepare(florence, question(image="gone"))
    florence.step(rows)
    assert isinstance(florence.finish(rows)[0], Gone)


def test_a_step_that_does_not_fit_the_memory_has_not_happened(
    florence: Florence2, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = prepare(florence, question())

    def full(**_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(florence.model, "generate", full)
        with pytest.raises(OutOfMemory):
            florence.step(rows)
    assert (rows[0].step, rows[0].result) == (0, None)
    florence.step(rows)
    assert isinstance(florence.finish(rows)[0], Answer)


def test_answers_are_no_longer_than_asked_for(florence: Florence2) -> None:
    rows = prepare(florence, question(VisionTask.OBJECT_DETECTION, max_new_tokens=9))
    florence.step(rows)
    (answer,) = florence.finish(rows)
    # <s>, three words, four places, and the end, which is forced.
    assert isinstance(answer, Answer) and answer.boxes is not None and len(answer.boxes) == 1


def test_only_answers_of_one_length_and_number_of_beams_share_a_lane(florence: Florence2) -> None:
    requests = [question(), question(VisionTask.OCR), question(beams=3), question(max_new_tokens=9)]
    lanes = [row.lane for (row,) in florence.prepare(requests)]  # type: ignore[misc]
    assert lanes[0] == lanes[1]
    assert len(set(lanes)) == 3


def test_pictures_cannot_be_drawn(florence: Florence2) -> None:
    wish = ImageRequest(model="florence", prompt="a cat", width=64, height=64, steps=2, guidance=1.0, seed=1)
    with pytest.raises(InvalidRequest, match="florence"):
        florence.prepare([wish])


@pytest.mark.parametrize("offload", Offload)
def test_a_model_that_rests_in_memory_answers_the_same(florence: Florence2, folder: Path, offload: Offload) -> None:
    answers = []
    for pipeline in (florence, load(folder, offload=offload)):
        rows = prepare(pipeline, question())
        pipeline.step(rows)
        answers += pipeline.finish(rows)
    assert answers[0] == answers[1]


# Checkpoints.


@pytest.mark.parametrize(
    ("changes", "better"),
    [
        ({"auto_map": {"AutoConfig": "configuration_florence2.Florence2Config"}, "projection_dim": 768}, "base"),
        ({"text_config": {"model_type": "florence2_language"}, "projection_dim": 1024}, "large"),
    ],
)
def test_the_original_layout_is_refused_with_the_repository_to_use(
    copy: Callable[..., Path], changes: dict[str, Any], better: str
) -> None:
    with pytest.raises(BrokenCheckpoint, match=f"florence-community/Florence-2-{better} instead"):
        load(copy(config=changes))


@pytest.mark.parametrize("name", ["processor_config", "tokenizer_config"])
def test_code_that_comes_with_a_processor_is_refused(copy: Callable[..., Path], name: str) -> None:
    with pytest.raises(BrokenCheckpoint, match="never run"):
        load(copy(**{name: {"auto_map": {"AutoProcessor": "processing_florence2.Florence2Processor"}}}))


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "processor_config.json", "config.json"])
def test_a_missing_file_is_named_without_a_path(copy: Callable[..., Path], name: str) -> None:
    broken = copy()
    (broken / name).unlink()
    with pytest.raises(BrokenCheckpoint, match="model florence: ") as refusal:
        load(broken)
    assert str(broken) not in str(refusal.value)


def test_a_missing_tensor_is_named(copy: Callable[..., Path]) -> None:
    from safetensors.torch import load_file, save_file

    broken = copy()
    tensors = load_file(broken / "model.safetensors")
    del tensors["model.multi_modal_projector.image_projection.weight"]
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BrokenCheckpoint, match=r"lacks .*image_projection"):
        load(broken)


def test_its_weights_are_counted(folder: Path) -> None:
    spec = ModelSpec(id="florence", family="florence2", folder=folder)
    checkpoint = Checkpoint.open(spec, dtype=torch.float32, device=torch.device("cpu"))
    size = (folder / "model.safetensors").stat().st_size
    assert 0.9 * size < checkpoint.weight_bytes() <= size


# Names of tasks.


@pytest.mark.parametrize("task", VisionTask)
def test_a_task_goes_by_its_name_and_by_its_token(task: VisionTask) -> None:
    token = TASKS[task].token
    for name in (task.value, task.value.upper(), token, token.lower(), f" {token[1:-1]} "):
        assert find_task(name) is task


def test_an_unknown_task_is_answered_with_the_names() -> None:
    with pytest.raises(InvalidRequest, match=r"'<DRAW>'.*caption, detailed_caption") as refusal:
        find_task("<DRAW>")
    assert refusal.value.field == "task"


def test_a_row_costs_its_beams(florence: Florence2) -> None:
    (row,) = prepare(florence, question(beams=3))
    assert isinstance(row, VisionRow)
    assert (row.entries, row.calls, row.seed, row.safety) == (3, 1, 0, None)


# The demo checkpoint.


def test_the_demo_is_the_same_bytes_every_time(folder: Path, tmp_path: Path) -> None:
    again = demo.ensure("florence2", tmp_path)
    files = sorted(file.name for file in folder.iterdir())
    assert files == sorted(file.name for file in again.iterdir())
    assert all((folder / name).read_bytes() == (again / name).read_bytes() for name in files)


def test_the_demo_speaks_words_that_depend_on_picture_and_question(folder: Path) -> None:
    def shade(name: str) -> Pixels:
        pixels = np.zeros((64, 64, 3), dtype=np.uint8)
        pixels[:, :32] = [int(part) for part in name.split()]
        return pixels

    spec = ModelSpec(id="florence", family="florence2", folder=folder)
    florence = Florence2.load(spec, Host(device=torch.device("cpu"), slots=8, read_input=shade))
    images = ("200 0 0", "0 200 0", "0 0 200")
    tasks = (VisionTask.CAPTION, VisionTask.DETAILED_CAPTION, VisionTask.OCR)
    rows = [prepare(florence, question(task, image=image))[0] for image in images for task in tasks]
    florence.step(rows)
    texts = [answer.text for answer in florence.finish(rows) if isinstance(answer, Answer)]
    assert all(text and set(text.split()) <= set(WORDS) for text in texts)
    assert len({texts[at] for at in (0, 3, 6)}) > 1
    assert len(set(texts[:3])) > 1
