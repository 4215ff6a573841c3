"""Pictures as prompts: stock's pictures, and rows with them share forwards with all others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipelines.request import ImageRequest, Task
from tests.equality.stock import FAMILY, Case, Stock, difference, draw, load_ours, picture

#: Of every family one that reads embeddings and one that reads places; SDXL's have different encoders.
ADAPTERS = {
    "sd15": ("ip-adapter_sd15", "ip-adapter-plus-face_sd15"),
    "sdxl": ("ip-adapter_sdxl", "ip-adapter-plus_sdxl_vit-h"),
}
ENCODERS = {"ip-adapter_sdxl": "vit-g"}
LORA = (("small", 0.5),)


@pytest.fixture(scope="module", params=["sd15", "sdxl"])
def checkpoint(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def folder(checkpoint: str, demo_folder: Path) -> Path:
    from pipelines import demo
    from pipelines.quiet import quiet_libraries

    quiet_libraries()
    demo.ensure("ip-adapters", demo_folder)
    return demo.ensure(checkpoint, demo_folder)


@pytest.fixture(scope="module")
def load(checkpoint: str, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Any]:
    """Loads the demo model; its LoRAs are in a folder of their own."""
    from functools import partial

    from pipelines import demo
    from pipelines.auxiliary import find_auxiliary

    data = tmp_path_factory.mktemp("data")
    find = demo.finding_stand_ins(partial(find_auxiliary, data), folder.parent)

    def loading() -> Any:
        pipeline = load_ours(checkpoint, folder, find_auxiliary=find)
        save_lora(pipeline.network, data / "loras")
        return pipeline

    return loading


def save_lora(network: Any, folder: Path) -> None:
    """``small`` changes what cross-attentions ask for, and what becomes of the answer."""
    import torch
    from safetensors.torch import save_file

    source = torch.Generator().manual_seed(4)
    tensors = {}
    for name, layer in network.named_modules():
        if name.endswith((".attn2.to_q", ".attn2.to_out.0")):
            tensors[f"unet.{name}.lora_A.weight"] = torch.randn(4, layer.in_features, generator=source)
            tensors[f"unet.{name}.lora_B.weight"] = torch.randn(layer.out_features, 4, generator=source)
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "small.safetensors")


@pytest.fixture(scope="module")
def pipeline(load: Callable[[], Any]) -> Any:
    return load()


@pytest.fixture(scope="module")
def stock(checkpoint: str, folder: Path) -> Stock:
    return Stock(checkpoint, folder)


def case(checkpoint: str, number: int, task: Task, **said: Any) -> Case:
    values = {"ip_adapter_image": f"picture-{number + 1}", **said}
    return Case(number=number, checkpoint=checkpoint, task=task, said=tuple(values.items()))


@pytest.mark.parametrize("place", [0, 1], ids=["plain", "plus"])
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_pictures_as_prompts_are_stocks(
    pipeline: Any, stock: Stock, checkpoint: str, demo_folder: Path, place: int
) -> None:
    name = ADAPTERS[FAMILY[checkpoint]][place]
    # Guidance 6 and 1.
    for number, task, scale in ((2, Task.TEXT2IMG, 0.6), (4, Task.IMG2IMG, 1.0)):
        one = case(checkpoint, number, task, ip_adapter=name, ip_adapter_scale=scale)
        pipe = stock.pipe(task)
        pipe.load_ip_adapter(
            str(demo_folder / "ip-adapters"),
            subfolder="ip_adapters",
            weight_name=f"{name}.safetensors",
            image_encoder_folder=f"image_encoders/{ENCODERS.get(name, 'vit-h')}",
        )
        pipe.set_ip_adapter_scale(scale)
        expected = stock.pixels(one, ip_adapter_image=Image.fromarray(picture(number + 1)))
        pipe.unload_ip_adapter()
        assert difference(draw(pipeline, [one.request()])[0], expected) <= 1
        assert difference(expected, stock.pixels(one)) > 4


def wish(checkpoint: str, number: int, **changes: Any) -> ImageRequest:
    values = Case(number=number, checkpoint=checkpoint, task=Task.TEXT2IMG, scheduler="EulerDiscreteScheduler")
    return replace(values.request(), **changes)


@pytest.fixture
def forwards(pipeline: Any) -> Iterator[list[int]]:
    """Entries of every forward."""
    seen: list[int] = []
    hook = pipeline.network.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    yield seen
    hook.remove()


def test_mixed_rows_draw_what_they_draw_alone(pipeline: Any, checkpoint: str, forwards: list[int]) -> None:
    plain, plus = ADAPTERS[FAMILY[checkpoint]]
    wanted: list[dict[str, Any]] = [
        {},
        {"ip_adapter": plain, "ip_adapter_image": "picture-1", "ip_adapter_scale": 1.0},
        {"ip_adapter": plain, "ip_adapter_image": "picture-1", "ip_adapter_scale": 0.0},
        {"ip_adapter": plus, "ip_adapter_image": "picture-2", "ip_adapter_scale": 0.3},
        {"ip_adapter": plain, "ip_adapter_image": "picture-2", "ip_adapter_scale": 0.3},
        {"ip_adapter": plus, "ip_adapter_image": "picture-3", "image": "picture-4", "strength": 0.7},
        {},
        {"loras": LORA},
        {"ip_adapter": plain, "ip_adapter_image": "picture-3", "loras": LORA},
    ]
    requests = [wish(checkpoint, number, **values) for number, values in enumerate(wanted)]
    together = draw(pipeline, requests)
    assert len(forwards) == max(request.steps for request in requests)
    without = [replace(request, ip_adapter=None, ip_adapter_image=None, ip_adapter_scale=0.6) for request in requests]
    base = draw(pipeline, without)
    pictured = {number for number, request in enumerate(requests) if request.ip_adapter and request.ip_adapter_scale}
    # Not nearly, but to the bit.
    changes = [difference(*pair) for pair in zip(together, base, strict=True)]
    assert [change for number, change in enumerate(changes) if number not in pictured] == [0] * 4
    assert min(changes[number] for number in pictured) > 4
    for number, request in enumerate(requests):
        assert difference(together[number], draw(pipeline, [request])[0]) <= 1


def test_a_picture_is_encoded_once(load: Callable[[], Any], checkpoint: str) -> None:
    pipeline = load()
    plus = ADAPTERS[FAMILY[checkpoint]][1]
    request = wish(checkpoint, 2, ip_adapter=plus, ip_adapter_image="picture-1", samples=2)
    (before,) = pipeline.prepare([replace(request, ip_adapter_scale=0.0)])
    assert before[0].picture is None and not pipeline.adapters._encoders
    pipeline.prepare([request])
    calls: list[int] = []
    pipeline.adapters._encoders["vit-h"][1].model.register_forward_hook(lambda *_: calls.append(1))
    pipeline.prepare([request, replace(request, seed=5, ip_adapter_scale=1.0)])
    assert calls == []
    pipeline.prepare([replace(request, ip_adapter_image="picture-2")])
    assert calls == [1]


def test_rows_give_their_slots_back(pipeline: Any, checkpoint: str) -> None:
    plain = ADAPTERS[FAMILY[checkpoint]][0]
    (rows,) = pipeline.prepare([wish(checkpoint, 2, ip_adapter=plain, ip_adapter_image="picture-1", samples=2)])
    for row in rows:
        pipeline.enter(row)
    positive, negative = rows[0].adapter
    assert rows[1].adapter == (positive, negative) and 0 < positive != negative > 0
    for row in [*rows, *rows]:
        pipeline.leave(row)
    assert [row.adapter for row in rows] == [(0, 0)] * 2
    assert not pipeline.adapters.bank.users
