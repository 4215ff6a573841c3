"""Stock diffusers, called as users call it, and our rows for the same requests. Imports nothing from ``schedulers``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipelines.auxiliary import FindAuxiliary, find_nothing
from pipelines.base import Pixels, Row
from pipelines.diffusion import DiffusionPipeline
from pipelines.model import ModelSpec
from pipelines.request import ImageRequest, Sigmas, Task

SIDE = 64

#: The checkpoint's demo builder -> stock pipeline classes by task.
CLASSES: dict[str, dict[Task, str]] = {
    "sd15": {
        Task.TEXT2IMG: "StableDiffusionPipeline",
        Task.IMG2IMG: "StableDiffusionImg2ImgPipeline",
        Task.INPAINT: "StableDiffusionInpaintPipeline",
    },
    "sd15-inpaint": {Task.INPAINT: "StableDiffusionInpaintPipeline"},
    "sd15-lcm": {Task.TEXT2IMG: "StableDiffusionPipeline", Task.IMG2IMG: "StableDiffusionImg2ImgPipeline"},
    "sdxl": {
        Task.TEXT2IMG: "StableDiffusionXLPipeline",
        Task.IMG2IMG: "StableDiffusionXLImg2ImgPipeline",
        Task.INPAINT: "StableDiffusionXLInpaintPipeline",
    },
    "sdxl-inpaint": {Task.INPAINT: "StableDiffusionXLInpaintPipeline"},
    "sdxl-turbo": {Task.TEXT2IMG: "StableDiffusionXLPipeline"},
    "flux": {
        Task.TEXT2IMG: "FluxPipeline",
        Task.IMG2IMG: "FluxImg2ImgPipeline",
        Task.INPAINT: "FluxInpaintPipeline",
    },
    "flux-schnell": {
        Task.TEXT2IMG: "FluxPipeline",
        Task.IMG2IMG: "FluxImg2ImgPipeline",
        Task.INPAINT: "FluxInpaintPipeline",
    },
    "flux-fill": {Task.INPAINT: "FluxFillPipeline"},
}
FAMILY = {name: name.partition("-")[0] for name in CLASSES}


def picture(number: int) -> Pixels:
    """A smooth colourful input, different for each number."""
    across, down = np.meshgrid(np.linspace(0, 1, SIDE), np.linspace(0, 1, SIDE))
    waves = [
        np.sin(2 * np.pi * (across * (1 + number % 3) + down * (1 + number % 2) + phase)) for phase in (0, 0.3, 0.6)
    ]
    return ((np.stack(waves, axis=-1) * 0.4 + 0.5) * 255).astype(np.uint8)


def mask(number: int) -> Pixels:
    """White is repainted: a block whose place depends on the number."""
    pixels = np.zeros((SIDE, SIDE, 3), dtype=np.uint8)
    start = 8 * (number % 4)
    pixels[start : start + 32, 16:56] = 255
    return pixels


def read_input(name: str) -> Pixels:
    """``picture-3`` and ``mask-3``."""
    kind, _, number = name.partition("-")
    return (picture if kind == "picture" else mask)(int(number))


@dataclass(frozen=True, kw_only=True)
class Case:
    """One picture that must be stock's."""

    number: int
    checkpoint: str
    task: Task
    #: None: the checkpoint's own.
    scheduler: str | None = None
    #: What users give to ``from_config``, and what a request says for the same.
    overrides: tuple[tuple[str, Any], ...] = ()
    said: tuple[tuple[str, Any], ...] = ()
    v_prediction: bool = False

    @property
    def id(self) -> str:
        parts = [self.checkpoint, self.task.value, (self.scheduler or "own").removesuffix("Scheduler")]
        parts += [str(value) for _, value in self.said] + (["v"] if self.v_prediction else [])
        return "-".join(parts)

    def request(self) -> ImageRequest:
        """Prompts, negatives, guidance, steps and strengths differ from case to case."""
        n = self.number
        values: dict[str, Any] = {
            "model": self.checkpoint,
            "prompt": f"a red cat and {n} dogs",
            "negative_prompt": "blurry" if n % 2 else None,
            "width": SIDE,
            "height": SIDE,
            "steps": 6 + n % 4,
            "guidance": 1.0 + n % 4 * 2.5,
            "seed": 1000 + n,
            "scheduler": self.scheduler,
        }
        # Stock's Fill has no second forward.
        if FAMILY[self.checkpoint] == "flux" and self.checkpoint != "flux-fill":
            values["true_cfg"] = 1.0 + n % 3
        if self.task is not Task.TEXT2IMG:
            values |= {"image": f"picture-{n}", "strength": (0.5, 0.75, 0.9, 1.0)[n % 4]}
        if self.task is Task.INPAINT:
            values["mask"] = f"mask-{n}"
        return ImageRequest(**{**values, **dict(self.said)})


class Stock:
    """Stock pipelines on one checkpoint folder, loaded once per task."""

    def __init__(self, checkpoint: str, folder: Path, *, vae: Path | None = None) -> None:
        self._checkpoint = checkpoint
        self._folder = folder
        self._vae = vae
        self._pipes: dict[Task, Any] = {}

    def pipe(self, task: Task) -> Any:
        """The pipeline of a task."""
        return self._pipe(task)[0]

    def _pipe(self, task: Task) -> tuple[Any, Any]:
        import diffusers

        if task not in self._pipes:
            extra = {"safety_checker": None} if FAMILY[self._checkpoint] == "sd15" else {}
            cls = getattr(diffusers, CLASSES[self._checkpoint][task])
            pipe = cls.from_pretrained(str(self._folder), local_files_only=True, **extra)
            pipe.set_progress_bar_config(disable=True)
            if self._vae is not None:
                pipe.vae = diffusers.AutoencoderKL.from_pretrained(str(self._vae), local_files_only=True)
            self._pipes[task] = pipe, pipe.scheduler.config
        found: tuple[Any, Any] = self._pipes[task]
        return found

    def pixels(self, case: Case, **more: Any) -> Pixels:
        """What stock draws for a case; ``more`` is given to its call."""
        import diffusers
        import torch

        request = case.request()
        pipe, base = self._pipe(case.task)
        overrides = dict(case.overrides) | ({"prediction_type": "v_prediction"} if case.v_prediction else {})
        cls = getattr(diffusers, case.scheduler) if case.scheduler else getattr(diffusers, _own(self._folder))
        pipe.scheduler = cls.from_config(base, **overrides)
        images = pipe(
            prompt=request.prompt,
            num_inference_steps=request.steps,
            guidance_scale=request.guidance,
            generator=[torch.Generator("cpu").manual_seed(request.seed)],
            output_type="np",
            **self._task_arguments(case, request),
            **more,
        ).images
        pixels: Pixels = (images[0] * 255).round().astype(np.uint8)
        return pixels

    def _task_arguments(self, case: Case, request: ImageRequest) -> dict[str, Any]:
        family = FAMILY[case.checkpoint]
        arguments: dict[str, Any] = {}
        if case.checkpoint != "flux-fill":
            arguments["negative_prompt"] = request.negative_prompt
        if family == "flux" and case.checkpoint != "flux-fill":
            arguments["true_cfg_scale"] = request.true_cfg
        if case.task is not Task.TEXT2IMG:
            arguments |= {"image": Image.fromarray(picture(case.number)), "strength": request.strength}
        if case.task is Task.INPAINT:
            arguments["mask_image"] = Image.fromarray(mask(case.number)[:, :, 0])
        if family == "flux" or case.task is not Task.IMG2IMG:
            arguments |= {"width": request.width, "height": request.height}
        return arguments


def _own(folder: Path) -> str:
    import json

    name: str = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())["_class_name"]
    return name


def load_ours(
    checkpoint: str,
    folder: Path,
    *,
    file: Path | None = None,
    slots: int = 128,
    find_auxiliary: FindAuxiliary = find_nothing,
) -> DiffusionPipeline:
    """Our pipeline on the same folder."""
    import importlib

    import torch

    from pipelines.host import Host
    from pipelines.registry import FAMILIES

    module, _, cls = FAMILIES[FAMILY[checkpoint]].partition(":")
    spec = ModelSpec(id=checkpoint, family=FAMILY[checkpoint], folder=folder, file=file)
    pipeline = getattr(importlib.import_module(module), cls).load(
        spec,
        Host(device=torch.device("cpu"), slots=slots, read_input=read_input, find_auxiliary=find_auxiliary),
    )
    assert isinstance(pipeline, DiffusionPipeline)
    return pipeline


def draw(pipeline: DiffusionPipeline, requests: Sequence[ImageRequest]) -> list[Pixels]:
    """All requests as rows of one lane, stepped together until the last is done."""
    rows: list[Row] = []
    for prepared in pipeline.prepare(requests):
        assert isinstance(prepared, list), prepared
        assert not any(row.warnings for row in prepared), prepared[0].warnings
        rows += prepared
    assert len({row.lane for row in rows}) == 1
    for row in rows:
        pipeline.enter(row)
    while moving := [row for row in rows if row.remaining]:
        assert not pipeline.step(moving)
    results = pipeline.finish(rows)
    for row in rows:
        pipeline.leave(row)
    pixels = [result for result in results if isinstance(result, np.ndarray)]
    assert len(pixels) == len(requests), results
    return pixels


def difference(one: Pixels, other: Pixels) -> int:
    """Largest difference in 8-bit levels."""
    return int(np.abs(one.astype(int) - other.astype(int)).max())


#: A request's sigmas and what users write for them.
KARRAS = ((("use_karras_sigmas", True),), (("sigmas", Sigmas.KARRAS),))
