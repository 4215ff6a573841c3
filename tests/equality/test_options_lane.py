"""One lane with every option at once: one forward a step, and each picture is what it is alone."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipelines.base import Pixels
from pipelines.request import ImageRequest, Task
from tests.equality.stock import Case, Stock, difference, draw, load_ours

#: LoRA -> its rank and what it changes: half of them the text encoder, too.
LORAS = {"lines": (4, ("unet",)), "colours": (24, ("unet", "text_encoder")), "shapes": (8, ("unet", "text_encoder"))}
STACKS: tuple[tuple[tuple[str, float], ...], ...] = (
    (),
    (("lines", 1.0),),
    (("lines", -0.5),),
    (("colours", 0.8),),
    (("shapes", 0.7),),
    (("lines", 0.4), ("colours", 0.5)),
    (("colours", 0.5), ("shapes", 0.6), ("lines", 1.0)),
)
#: None: the row has no picture as a prompt.
IMAGES = (None, "picture-1", "picture-2", None, "picture-3")
CLIP_SKIPS = (1, 2, 3, 4)
TASKS: tuple[dict[str, Any], ...] = (
    {},
    {"image": "picture-4", "strength": 0.7},
    {"image": "picture-5", "mask": "mask-2", "strength": 0.9},
)
SCHEDULERS = (
    "EulerDiscreteScheduler",
    "DDIMScheduler",
    "DPMSolverMultistepScheduler",
    "EulerAncestralDiscreteScheduler",
    "LMSDiscreteScheduler",
)


def wish(number: int) -> ImageRequest:
    """Numbers of options have no common divisor, so that rows are mixed in all of them."""
    image = IMAGES[number % len(IMAGES)]
    adapter: dict[str, Any] = {
        "ip_adapter": "ip-adapter_sd15",
        "ip_adapter_image": image,
        "ip_adapter_scale": 0.3 + 0.04 * number,
    }
    return ImageRequest(
        model="sd15",
        prompt=f"a (red:1.2) cat and {number} dogs",
        negative_prompt="blurry" if number % 2 else None,
        width=64,
        height=64,
        steps=5 + number % 3,
        guidance=1.0 if number == 7 else 3.0 + number % 4,
        seed=100 + number,
        scheduler=SCHEDULERS[number % len(SCHEDULERS)],
        clip_skip=CLIP_SKIPS[number % len(CLIP_SKIPS)],
        loras=STACKS[number % len(STACKS)],
        **TASKS[number % len(TASKS)],
        **(adapter if image else {}),
    )


WISHES = tuple(wish(number) for number in range(16))


@pytest.fixture(scope="module")
def pipeline(demo_folder: Path, sd15_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    from functools import partial

    from pipelines import demo
    from pipelines.auxiliary import find_auxiliary

    data = tmp_path_factory.mktemp("data")
    pipeline = load_ours(
        "sd15", sd15_folder, find_auxiliary=demo.finding_stand_ins(partial(find_auxiliary, data), demo_folder)
    )
    save_loras(pipeline, data / "loras")
    return pipeline


def save_loras(pipeline: Any, folder: Path) -> None:
    import torch
    from safetensors.torch import save_file

    folder.mkdir()
    networks = {"unet": pipeline.network, **{encoder.name: encoder.model for encoder in pipeline.encoders}}
    for seed, (name, (rank, parts)) in enumerate(LORAS.items()):
        source = torch.Generator().manual_seed(seed)
        tensors: dict[str, torch.Tensor] = {}
        for part in parts:
            for layer, module in networks[part].named_modules():
                if layer.endswith((".to_q", ".to_out.0", "mlp.fc1")):
                    down = torch.randn(rank, module.in_features, generator=source)
                    up = torch.randn(module.out_features, rank, generator=source) / rank
                    tensors |= {f"{part}.{layer}.lora_A.weight": down, f"{part}.{layer}.lora_B.weight": up}
        save_file(tensors, folder / f"{name}.safetensors")


@pytest.fixture(scope="module")
def alone(pipeline: Any) -> list[Pixels]:
    return [draw(pipeline, [request])[0] for request in WISHES]


def test_the_rows_have_what_they_should() -> None:
    assert len({one.loras for one in WISHES if one.loras}) == 6
    assert len({one.ip_adapter_image for one in WISHES if one.ip_adapter}) == 3
    assert any(one.ip_adapter is None for one in WISHES)
    assert len({one.clip_skip for one in WISHES}) == 4
    assert len({one.task for one in WISHES}) == 3
    assert len({one.scheduler for one in WISHES}) == 5


def test_sixteen_rows_of_all_options_share_forwards_and_are_what_they_are_alone(
    pipeline: Any, alone: list[Pixels]
) -> None:
    sizes: Counter[int] = Counter()
    hook = pipeline.network.register_forward_hook(lambda module, inputs, output: sizes.update([len(inputs[0])]))
    try:
        together = draw(pipeline, WISHES)
    finally:
        hook.remove()
    calls = [pipeline.table(request).calls for request in WISHES]
    # As many forwards as the longest row has steps, and in the first of them all entries: two of each row but one.
    assert sizes.total() == max(calls)
    assert max(sizes) == 2 * len(WISHES) - 1
    assert [difference(*pair) <= 1 for pair in zip(together, alone, strict=True)] == [True] * len(WISHES)


@pytest.mark.parametrize("option", ["loras", "ip_adapter", "clip_skip"])
def test_each_option_shows_in_every_row_that_has_it(pipeline: Any, alone: list[Pixels], option: str) -> None:
    nothing: dict[str, Any] = {"loras": (), "ip_adapter": None, "clip_skip": 1}
    having = [number for number, one in enumerate(WISHES) if getattr(one, option) != nothing[option]]
    without = draw(pipeline, [replace(WISHES[number], **{option: nothing[option]}) for number in having])
    seen = [difference(alone[number], picture) for number, picture in zip(having, without, strict=True)]
    assert min(seen) > 1, seen


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_sdxl_pictures_are_stocks_whether_clip_skip_is_left_out_1_or_2(demo_folder: Path) -> None:
    from pipelines import demo
    from pipelines.quiet import quiet_libraries

    quiet_libraries()
    folder = demo.ensure("sdxl", demo_folder)
    cases = [Case(number=1, checkpoint="sdxl", task=Task.TEXT2IMG, said=said) for said in ((), (("clip_skip", 2),))]
    expected = Stock("sdxl", folder).pixels(cases[0])
    pipeline = load_ours("sdxl", folder)
    drawn = [draw(pipeline, [case.request()])[0] for case in cases]
    assert max(difference(one, expected) for one in drawn) <= 1
    deeper = draw(pipeline, [replace(cases[0].request(), clip_skip=3)])[0]
    assert difference(deeper, expected) > 1
