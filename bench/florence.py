"""What batches of captions gain, on the demo checkpoint: ``python -m bench.florence``.

Captions per second at 1, 8 and 32 pictures: ours, in calls of as many rows as the engine's lane takes at a time,
against transformers' own calls in a loop, one picture each, with the same settings. Both sides read the pictures'
pixels, resize them and decode the words; medians of rounds in which the two take turns (machines are noisy).
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from pipelines import demo
from pipelines.base import Pixels, Row
from pipelines.florence2 import Florence2
from pipelines.florence2_tasks import TASKS
from pipelines.host import Host
from pipelines.model import ModelSpec
from pipelines.quiet import quiet_libraries
from pipelines.vision import Answer, VisionRequest, VisionTask

PICTURES = (1, 8, 32)
BEAMS = (1, 3)
SIDE = 512
#: The setting ``max_rows``.
ROWS = 16


def picture(name: str) -> Pixels:
    """Blocks of colours."""
    blocks = np.random.default_rng(int(name)).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return blocks.repeat(SIDE // 8, axis=0).repeat(SIDE // 8, axis=1)


def caption_together(florence: Florence2, count: int, beams: int) -> list[str]:
    """As the engine does: admission of all, then calls of up to ``ROWS`` rows."""
    rows: list[Row] = []
    for prepared in florence.prepare(
        [VisionRequest(model="florence", task=VisionTask.CAPTION, image=str(n), beams=beams) for n in range(count)]
    ):
        assert isinstance(prepared, list)
        rows += prepared
    for start in range(0, count, ROWS):
        florence.step(rows[start : start + ROWS])
    return [answer.text or "" for answer in florence.finish(rows) if isinstance(answer, Answer)]


def caption_singly(processor: Any, model: Any, count: int, beams: int) -> list[str]:
    """As the model's card shows it."""
    token = TASKS[VisionTask.CAPTION].token
    texts = []
    for number in range(count):
        image = Image.fromarray(picture(str(number)))
        inputs = processor(text=token, images=image, return_tensors="pt")
        with torch.inference_mode():
            ids = model.generate(**inputs, max_new_tokens=1024, num_beams=beams, do_sample=False)
        written = processor.batch_decode(ids, skip_special_tokens=False)[0]
        texts.append(processor.post_process_generation(written, task=token, image_size=image.size)[token])
    return texts


def compare(sides: tuple[Callable[[], object], Callable[[], object]], rounds: int) -> tuple[float, float]:
    """Median seconds of each, taking turns; the first round warms up."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds + 1):
        for times, run in zip(seconds, sides, strict=True):
            began = time.perf_counter()
            run()
            times.append(time.perf_counter() - began)
    first, second = (statistics.median(times[1:]) for times in seconds)
    return first, second


def main() -> None:
    from transformers import AutoProcessor, Florence2ForConditionalGeneration

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="turns of each side per comparison")
    rounds = parser.parse_args().rounds
    quiet_libraries()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = demo.ensure("florence2", Path(folder))
        spec = ModelSpec(id="florence", family="florence2", folder=checkpoint)
        ours = Florence2.load(spec, Host(device=torch.device("cpu"), slots=2 * ROWS, read_input=picture))
        processor = AutoProcessor.from_pretrained(str(checkpoint), local_files_only=True)
        model = Florence2ForConditionalGeneration.from_pretrained(str(checkpoint), local_files_only=True).eval()
        print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {SIDE} px, calls of up to {ROWS} rows\n")
        print("captions/s\nbeams   pictures     ours    single calls   ratio")
        for beams in BEAMS:
            for count in PICTURES:
                sides = (
                    lambda count=count, beams=beams: caption_together(ours, count, beams),
                    lambda count=count, beams=beams: caption_singly(processor, model, count, beams),
                )
                together, singly = compare(sides, rounds)
                print(
                    f"{beams:5d}   {count:8d}   {count / together:6.1f}   {count / singly:12.1f}   "
                    f"{singly / together:5.2f}"
                )


if __name__ == "__main__":
    main()
