"""IP-Adapter files and banks by themselves; the pictures that come of them are compared in tests/equality."""

from __future__ import annotations

import gc
import shutil
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pipelines import demo
from pipelines.auxiliary import AuxiliaryKind, find_auxiliary
from pipelines.base import Pixels
from pipelines.demo.unet import Wiring, sd15_unet, sdxl_unet
from pipelines.errors import BrokenCheckpoint, InvalidRequest
from pipelines.extras import Extras
from pipelines.ip_adapter import IP_ADAPTERS
from pipelines.ip_adapter_bank import MAX_IDLE, PicturedAttention
from pipelines.ip_adapter_file import TOKENS
from pipelines.ip_adapters import IpAdapters
from pipelines.model import Offload
from pipelines.placement import Placement
from pipelines.request import ImageRequest
from pipelines.shared import SharedComponents

PLAIN, PLUS = "ip-adapter_sd15", "ip-adapter-plus-face_sd15"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data(demo_folder: Path) -> Path:
    """A data folder with all adapters and encoders."""
    return demo.ensure("ip-adapters", demo_folder)


@pytest.fixture
def unet() -> Any:
    return built(sd15_unet)


def built(build: Callable[[Wiring], Any]) -> Any:
    torch.manual_seed(0)
    with torch.no_grad():
        return build(Wiring()).requires_grad_(False)


def picture(name: str) -> Pixels:
    return np.full((24, 40, 3), int(name), dtype=np.uint8)


def adapters(
    network: Any, folder: Path, shared: SharedComponents | None = None, extras: Extras | None = None
) -> IpAdapters:
    return IpAdapters(
        network,
        dtype=torch.float32,
        placement=Placement(Offload.NONE, CPU),
        find=partial(find_auxiliary, folder),
        read=picture,
        shared=shared,
        extras=extras or Extras(),
    )


def wish(name: str, image: str = "7", scale: float = 1.0) -> ImageRequest:
    return ImageRequest(
        model="mine",
        prompt="x",
        width=64,
        height=64,
        steps=1,
        guidance=7.5,
        seed=1,
        ip_adapter=name,
        ip_adapter_image=image,
        ip_adapter_scale=scale,
    )


def take(ours: IpAdapters, name: str, image: str = "7", *, guided: bool = True) -> tuple[int, int]:
    prompt = ours.prompt(wish(name, image), guided=guided)
    assert prompt is not None
    return ours.take(prompt)


@torch.inference_mode()
def forward(network: Any, entries: int = 3) -> torch.Tensor:
    source = torch.Generator().manual_seed(5)
    out: torch.Tensor = network(
        torch.randn(entries, 4, 16, 16, generator=source),
        torch.linspace(1, 990, entries),
        encoder_hidden_states=torch.randn(entries, 7, 32, generator=source),
        return_dict=False,
    )[0]
    return out


def test_entries_without_a_picture_are_equal_to_the_bit(unet: Any, data: Path) -> None:
    base = forward(unet)
    ours = adapters(unet, data)
    positive, negative = take(ours, PLUS)
    assert torch.equal(forward(unet), base)
    slots = torch.tensor([0, positive, 0], dtype=torch.int32)
    with torch.inference_mode(), ours.bank.using(slots, torch.tensor([0.0, 0.7, 0.6])):
        out = forward(unet)
    assert torch.equal(out[[0, 2]], base[[0, 2]])
    assert not torch.allclose(out[1], base[1], atol=1e-3)
    assert negative and torch.equal(forward(unet), base)


def test_few_tokens_repeated_are_attended_to_as_they_are_once(unet: Any, data: Path) -> None:
    ours = adapters(unet, data)
    prompt = ours.prompt(wish(PLAIN), guided=False)
    assert prompt is not None
    values = prompt.adapter.values(prompt.positive)
    assert len(values) == TOKENS
    few, width = values[:4], ours.bank.layers[0][0]
    query = torch.randn(1, 1, 9, width)

    def attend(tokens: torch.Tensor) -> torch.Tensor:
        keys, answers = tokens[:, :width], tokens[:, width : 2 * width]
        return torch.nn.functional.scaled_dot_product_attention(query, keys[None, None], answers[None, None])

    torch.testing.assert_close(attend(values), attend(few))


def test_equal_pictures_share_slots_and_sides_do_not(unet: Any, data: Path) -> None:
    ours = adapters(unet, data)
    first = take(ours, PLAIN)
    assert take(ours, PLAIN) == first
    other = take(ours, PLAIN, "8")
    assert other[0] != first[0] and other[1] == first[1]
    assert not {*take(ours, PLUS)} & {*first, *other}
    assert take(ours, PLAIN, guided=False) == (first[0], 0)
    for slots in (first, first, other):
        ours.give(slots)


def test_a_scale_of_0_reads_no_picture(unet: Any, tmp_path: Path, data: Path) -> None:
    shutil.copytree(data / "ip_adapters", tmp_path / "ip_adapters")
    assert adapters(unet, tmp_path).prompt(wish(PLAIN, "no number", 0.0), guided=True) is None


def test_a_hundred_pictures_leave_memory_flat_and_the_base_as_it_was(unet: Any, data: Path) -> None:
    base = forward(unet)
    ours = adapters(unet, data)
    sizes = []
    for number in range(100):
        ours.give(take(ours, PLAIN, str(number)))
        sizes.append(ours.bank.bytes)
    assert len(ours.bank) <= MAX_IDLE + 2 and sizes[-1] == sizes[MAX_IDLE]
    assert torch.equal(forward(unet), base)


def test_models_that_share_a_denoiser_share_its_bank_and_their_encoder(unet: Any, data: Path) -> None:
    shared = SharedComponents()
    one, other = adapters(unet, data, shared), adapters(unet, data, shared)
    assert one.bank is other.bank
    assert take(one, PLAIN) == take(other, PLAIN)
    assert one._encoders["vit-h"][1].model is other._encoders["vit-h"][1].model


def test_a_denoiser_outlives_its_bank_with_its_own_attention(unet: Any, data: Path) -> None:
    before = {name: type(one) for name, one in unet.attn_processors.items()}
    ours = adapters(unet, data)
    take(ours, PLAIN)
    assert any(isinstance(one, PicturedAttention) for one in unet.attn_processors.values())
    gone = weakref.ref(ours.bank)
    del ours
    gc.collect()
    assert gone() is None
    assert {name: type(one) for name, one in unet.attn_processors.items()} == before


def test_a_bank_keeps_no_dropped_denoiser(data: Path) -> None:
    network = built(sd15_unet)
    ours = adapters(network, data)
    take(ours, PLAIN)
    gone = weakref.ref(network)
    gc.collect()
    gc.disable()
    try:
        del ours, network
        assert gone() is None
    finally:
        gc.enable()


# What is refused


INCOMPLETE = "is damaged: its image_proj is not complete"


def refusal(network: Any, folder: Path, name: str = PLAIN) -> str:
    with pytest.raises(InvalidRequest) as caught:
        adapters(network, folder).prompt(wish(name), guided=True)
    assert caught.value.field == "ip_adapter"
    return str(caught.value)


@pytest.fixture
def mine(data: Path, tmp_path: Path) -> Path:
    """A data folder to spoil."""
    shutil.copytree(data, tmp_path, dirs_exist_ok=True)
    return tmp_path


def spoil(folder: Path, change: Callable[[dict[str, torch.Tensor]], object], name: str = PLAIN) -> None:
    file = folder / "ip_adapters" / f"{name}.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


def test_every_public_id_has_a_stand_in(data: Path) -> None:
    networks = {"sd15": built(sd15_unet), "sdxl": built(sdxl_unet)}
    for name, facts in IP_ADAPTERS.items():
        assert take(adapters(networks[facts.family], data), name) == (1, 2)


def test_an_adapter_for_another_denoiser_is_refused_with_its_id(data: Path, mine: Path) -> None:
    assert refusal(built(sdxl_unet), data) == f"IP-Adapter {PLAIN} is not for mine: its layers have other sizes"
    spoil(mine, lambda tensors: tensors.pop("ip_adapter.1.to_k_ip.weight"))
    assert "is not for mine" in refusal(built(sd15_unet), mine)


def test_what_is_not_here_is_named(unet: Any, mine: Path) -> None:
    assert refusal(unet, mine, "../x") == "IP-Adapter not found: ../x"
    shutil.rmtree(mine / "image_encoders" / "vit-h")
    assert refusal(unet, mine) == f"IP-Adapter {PLAIN} cannot be used: its image encoder vit-h is not here"
    (mine / "ip_adapters" / f"{PLAIN}.safetensors").unlink()
    assert refusal(unet, mine) == f"IP-Adapter {PLAIN} is not here: its weights are missing"


@pytest.mark.parametrize(
    ("name", "change", "expected"),
    [
        (PLAIN, lambda t: t.pop("image_proj.norm.weight"), INCOMPLETE),
        (PLAIN, lambda t: t.pop("image_proj.proj.weight"), "is of a kind that is not supported"),
        (PLUS, lambda t: t.pop("image_proj.proj_in.bias"), INCOMPLETE),
        (PLUS, lambda t: t.update({"image_proj.x": torch.zeros(1)}), INCOMPLETE),
        (
            PLUS,
            lambda t: t.update({"image_proj.latents": torch.zeros(1, 5, 32)}),
            "is not supported: it makes 5 tokens of a picture",
        ),
        (PLAIN, lambda t: t.update({"image_proj.proj.weight": torch.zeros(5)}), INCOMPLETE),
        (PLAIN, lambda t: t.update({"image_proj.norm.weight": torch.tensor(1.0)}), INCOMPLETE),
        (PLUS, lambda t: t.update({"image_proj.latents": torch.zeros(4, 8)}), INCOMPLETE),
        (
            PLAIN,
            lambda t: t.update({f"image_proj.norm.{part}": torch.ones(16) for part in ("weight", "bias")}),
            "is damaged: its image_proj makes tokens of 16 numbers, not 32",
        ),
        (
            PLAIN,
            lambda t: t.update({"image_proj.proj.weight": torch.zeros(128, 7)}),
            "is not for the image encoder vit-h that is here: it reads 7 numbers, not 24",
        ),
    ],
)
def test_damaged_and_other_files_are_refused(unet: Any, mine: Path, name: str, change: Any, expected: str) -> None:
    spoil(mine, change, name)
    assert refusal(unet, mine, name) == f"IP-Adapter {name} {expected}"


def test_a_broken_encoder_says_what_is_wrong(unet: Any, mine: Path) -> None:
    folder = mine / "image_encoders" / "vit-h"
    tensors = load_file(folder / "model.safetensors")
    tensors.pop("visual_projection.weight")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(BrokenCheckpoint, match=r"image encoder: vit-h lacks visual_projection\.weight"):
        adapters(unet, mine).prompt(wish(PLAIN), guided=True)


def test_demo_models_find_stand_ins_and_nothing_else_of_their_kind(data: Path, tmp_path: Path) -> None:
    asked: list[AuxiliaryKind] = []

    def real(kind: AuxiliaryKind, name: str) -> Path:
        asked.append(kind)
        return tmp_path

    find = demo.finding_stand_ins(real, data.parent)
    assert find(AuxiliaryKind.IP_ADAPTER, PLAIN) == data / "ip_adapters" / f"{PLAIN}.safetensors"
    assert find(AuxiliaryKind.IMAGE_ENCODER, "vit-g") == data / "image_encoders" / "vit-g"
    assert find(AuxiliaryKind.IP_ADAPTER, "other") is None
    assert find(AuxiliaryKind.LORA, "any") == tmp_path and asked == [AuxiliaryKind.LORA]


def test_an_encoder_that_has_become_another_reads_pictures_anew(unet: Any, mine: Path) -> None:
    ours = adapters(unet, mine)
    slot = take(ours, PLAIN, guided=False)
    assert take(ours, PLAIN, guided=False) == slot
    file = mine / "image_encoders" / "vit-h" / "model.safetensors"
    save_file({name: tensor * 1.5 for name, tensor in load_file(file).items()}, file, {"format": "pt"})
    other = take(ours, PLAIN, guided=False)
    assert other != slot
    values = ours.bank.values
    assert not torch.equal(values[slot[0]], values[other[0]])


def test_what_adapters_and_encoders_take_counts_once_and_can_be_let_go(unet: Any, data: Path) -> None:
    extras, shared = Extras(), SharedComponents()
    one, other = adapters(unet, data, shared, extras), adapters(unet, data, shared, extras)
    empty = extras.bytes()
    prompt = one.prompt(wish(PLAIN), guided=False)
    assert prompt is not None
    encoder = sum(parameter.nbytes for parameter in one._encoders["vit-h"][1].model.parameters())
    first = extras.bytes() - empty
    assert first == prompt.adapter.bytes + prompt.positive.nbytes + encoder
    other.prompt(wish(PLAIN), guided=False)
    # The encoder is one for both.
    assert extras.bytes() - empty == 2 * first - encoder
    extras.release()
    assert extras.bytes() == empty
    # A row on its way has what it needs, and the next one reads it again.
    assert one.take(prompt) == take(one, PLAIN, guided=False)
    del one, other, prompt
    gc.collect()
    assert extras.bytes() == 0
