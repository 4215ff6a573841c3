"""What is on the device, and when."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch import nn

from pipelines.model import Offload
from pipelines.placement import Part, Placement

#: A device that holds nothing stands for a real one: what matters is who is sent there, and when.
DEVICE = torch.device("meta")


class Module(nn.Module):
    """Remembers where it was sent."""

    def __init__(self) -> None:
        super().__init__()
        self.where = "cpu"

    def to(self, device: torch.device) -> Module:  # type: ignore[override]
        self.where = device.type
        return self


def placed(mode: Offload) -> tuple[Placement, dict[Part, Module]]:
    placement = Placement(mode, DEVICE)
    modules = {part: Module() for part in Part}
    for part, module in modules.items():
        placement.add(part, module)
    return placement, modules


def on_device(modules: dict[Part, Module]) -> set[Part]:
    return {part for part, module in modules.items() if module.where == "meta"}


def test_without_offloading_everything_is_on_the_device_and_read_there() -> None:
    placement, modules = placed(Offload.NONE)
    assert placement.loading_device == DEVICE
    assert on_device(modules) == set(Part)


def test_encoders_are_on_the_device_only_while_they_encode() -> None:
    placement, modules = placed(Offload.ENCODERS)
    assert placement.loading_device.type == "cpu"
    assert on_device(modules) == {Part.DENOISER, Part.VAE}
    with placement.using(Part.ENCODERS):
        assert on_device(modules) == set(Part)
    assert on_device(modules) == {Part.DENOISER, Part.VAE}


def test_what_joins_a_part_goes_where_the_part_is() -> None:
    for mode, there in ((Offload.NONE, True), (Offload.ENCODERS, True), (Offload.MODEL, False)):
        placement, modules = placed(mode)
        later = Module()
        placement.add(Part.VAE, later)
        assert (later.where == "meta") is there
        with placement.using(Part.VAE):
            assert later.where == modules[Part.VAE].where == "meta"
            last = Module()
            placement.add(Part.VAE, last)
            assert last.where == "meta"
        with placement.using(Part.DENOISER):
            assert (later.where, last.where) == (modules[Part.VAE].where,) * 2


def test_a_module_that_nobody_holds_is_let_go() -> None:
    placement, _ = placed(Offload.MODEL)
    later = Module()
    placement.add(Part.VAE, later)
    gone = weakref.ref(later)
    del later
    assert gone() is None


def test_whole_parts_take_turns_and_the_last_one_stays() -> None:
    placement, modules = placed(Offload.MODEL)
    assert on_device(modules) == set()
    for part in (Part.ENCODERS, Part.DENOISER, Part.DENOISER, Part.VAE):
        with placement.using(part):
            assert on_device(modules) == {part}
        assert on_device(modules) == {part}


def test_a_part_leaves_the_device_even_if_its_use_fails() -> None:
    placement, modules = placed(Offload.ENCODERS)
    with pytest.raises(ValueError, match="no"), placement.using(Part.ENCODERS):
        raise ValueError("no")
    assert Part.ENCODERS not in on_device(modules)


def test_layer_by_layer_the_denoiser_computes_on_the_device_and_rests_off_it() -> None:
    placement = Placement(Offload.SEQUENTIAL, torch.device("cpu"))
    layer = nn.Linear(3, 2)
    expected = layer(torch.ones(1, 3))
    placement.add(Part.DENOISER, layer)
    assert layer.weight.is_meta
    with placement.using(Part.DENOISER):
        assert torch.equal(layer(torch.ones(1, 3)), expected)
    assert layer.weight.is_meta


def test_what_comes_later_joins_its_part_where_it_is() -> None:
    for mode, used, expected in (
        (Offload.NONE, Part.VAE, "meta"),
        (Offload.MODEL, Part.ENCODERS, "meta"),
        (Offload.MODEL, Part.VAE, "cpu"),
        (Offload.ENCODERS, Part.ENCODERS, "cpu"),
    ):
        placement, _ = placed(mode)
        with placement.using(used):
            pass
        late = Module()
        placement.add(Part.ENCODERS, late)
        assert late.where == expected
        with placement.using(Part.ENCODERS):
            assert late.where == "meta"
