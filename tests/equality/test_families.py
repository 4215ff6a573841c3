"""Our pictures are stock diffusers' pictures: every family, task and scheduler whose stock pipeline is right.

All of ours of one checkpoint, of all tasks and schedulers, are rows of one lane; each of stock's is drawn alone.
Checkpoints that start from pictures have a VAE with a wide posterior, so that a wrong or missing draw is seen.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from pipelines.base import Pixels
from pipelines.request import Sigmas, Task
from tests.equality.stock import CLASSES, FAMILY, KARRAS, Case, Stock, difference, draw, load_ours

NAMES = (
    "DDPM DDIM PNDM LMSDiscrete EulerDiscrete EulerAncestralDiscrete DPMSolverMultistep HeunDiscrete KDPM2Discrete "
    "DPMSolverSinglestep KDPM2AncestralDiscrete UniPCMultistep DEISMultistep LCM"
).split()
TAKE_KARRAS = (
    "LMSDiscrete EulerDiscrete DPMSolverMultistep HeunDiscrete KDPM2Discrete DPMSolverSinglestep UniPCMultistep "
    "DEISMultistep"
).split()
V_PREDICTED = ("DDIM", "EulerDiscrete", "DPMSolverMultistep", "EulerAncestralDiscrete")
#: What is drawn at every change; the rest is marked slow.
CORE = ("EulerAncestralDiscrete", "DPMSolverMultistep", "PNDM")
#: Further options, on SD1.5 text2img.
OPTIONS: tuple[tuple[str, dict[str, Any], dict[str, Any]], ...] = (
    ("EulerDiscrete", {"use_exponential_sigmas": True}, {"sigmas": Sigmas.EXPONENTIAL}),
    ("EulerDiscrete", {"use_beta_sigmas": True}, {"sigmas": Sigmas.BETA}),
    ("EulerDiscrete", {"timestep_spacing": "trailing"}, {"spacing": "trailing"}),
    ("DDIM", {"timestep_spacing": "trailing"}, {"spacing": "trailing"}),
    ("DPMSolverMultistep", {"algorithm_type": "sde-dpmsolver++"}, {"algorithm_type": "sde-dpmsolver++"}),
    (
        "DPMSolverMultistep",
        {"algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True},
        {"algorithm_type": "dpmsolver+++", "sigmas": Sigmas.KARRAS},
    ),
    ("DPMSolverSinglestep", {"algorithm_type": "sde-dpmsolver++"}, {"algorithm_type": "sde-dpmsolver++"}),
)


def unet_cases(checkpoint: str, task: Task, numbers: Iterator[int]) -> Iterator[Case]:
    shared: dict[str, Any] = {"checkpoint": checkpoint, "task": task}
    for name in NAMES:
        yield Case(number=next(numbers), scheduler=name + "Scheduler", **shared)
    for name in TAKE_KARRAS:
        overrides, said = KARRAS
        yield Case(number=next(numbers), scheduler=name + "Scheduler", overrides=overrides, said=said, **shared)
    for name in V_PREDICTED:
        yield Case(number=next(numbers), scheduler=name + "Scheduler", v_prediction=True, **shared)
    if (checkpoint, task) == ("sd15", Task.TEXT2IMG):
        for name, overrides_of, said_of in OPTIONS:
            yield Case(
                number=next(numbers),
                scheduler=name + "Scheduler",
                overrides=tuple(overrides_of.items()),
                said=tuple(said_of.items()),
                **shared,
            )


def all_cases() -> Iterator[Case]:
    numbers = itertools.count()
    for checkpoint, classes in CLASSES.items():
        for task in classes:
            if checkpoint in ("sd15", "sd15-inpaint", "sdxl", "sdxl-inpaint"):
                yield from unet_cases(checkpoint, task, numbers)
            # With the checkpoint's own scheduler: several, for their different steps, strengths and guidance.
            for _ in range(4):
                yield Case(number=next(numbers), checkpoint=checkpoint, task=task)


CASES = list(all_cases())


def is_core(case: Case) -> bool:
    if case.scheduler is None:
        return case.number % 2 == 0
    plain = not case.said and not case.v_prediction
    return plain and case.scheduler.removesuffix("Scheduler") in CORE and not case.checkpoint.endswith("inpaint")


@cache
def _folders(root: Path, checkpoint: str) -> Path:
    from pipelines import demo
    from pipelines.demo.vae import noisy
    from pipelines.quiet import quiet_libraries

    quiet_libraries()
    folder = demo.ensure(checkpoint, root)
    if any(task is not Task.TEXT2IMG for task in CLASSES[checkpoint]):
        noisy(folder)
    return folder


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("equality")


@pytest.fixture(scope="module")
def stocks() -> dict[str, Stock]:
    return {}


@pytest.fixture(scope="module")
def drawn() -> dict[tuple[str, bool, bool], dict[int, Pixels]]:
    return {}


def ours(case: Case, root: Path, drawn: dict[tuple[str, bool, bool], dict[int, Pixels]]) -> Pixels:
    """Draws all cases of the checkpoint that are run together, the first time one of them is asked for."""
    key = (case.checkpoint, case.v_prediction, is_core(case))
    if key not in drawn:
        pipeline = load_ours(case.checkpoint, _folders(root, case.checkpoint))
        if case.v_prediction:
            pipeline.scheduler_config["prediction_type"] = "v_prediction"
        together = [one for one in CASES if (one.checkpoint, one.v_prediction, is_core(one)) == key]
        pixels = draw(pipeline, [one.request() for one in together])
        drawn[key] = {one.number: picture for one, picture in zip(together, pixels, strict=True)}
    return drawn[key][case.number]


@pytest.mark.filterwarnings("ignore:__array")
@pytest.mark.parametrize(
    "case", [pytest.param(one, id=one.id, marks=() if is_core(one) else pytest.mark.slow) for one in CASES]
)
def test_a_row_among_others_is_stocks_picture(
    case: Case, root: Path, stocks: dict[str, Stock], drawn: dict[tuple[str, bool, bool], dict[int, Pixels]]
) -> None:
    folder = _folders(root, case.checkpoint)
    theirs = stocks.setdefault(case.checkpoint, Stock(case.checkpoint, folder)).pixels(case)
    assert theirs.std() > 5, "a flat picture would prove nothing"
    assert difference(ours(case, root, drawn), theirs) <= 1


def test_there_are_enough_cases() -> None:
    assert len(CASES) >= 150
    assert 40 <= sum(map(is_core, CASES)) <= 60
    assert {FAMILY[case.checkpoint] for case in CASES} == {"sd15", "sdxl", "flux"}
