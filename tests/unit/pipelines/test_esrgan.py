"""Upscalers load from every published layout, and make what the papers say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pipelines.errors import BrokenCheckpoint
from pipelines.esrgan import Enlarger, load_enlarger
from tests.unit.pipelines.upscalers import (
    Tensors,
    compact,
    first_layout,
    rrdb,
    run_compact,
    run_rrdb,
    second_layout,
    wrapped,
    write,
)


def load(tensors: Tensors, folder: Path) -> Enlarger:
    path = write(tensors, folder, "tiny")
    return load_enlarger(path, "tiny", dtype=torch.float32, device=torch.device("cpu"))


def picture(height: int, width: int) -> torch.Tensor:
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("layout", [lambda tensors: tensors, first_layout, second_layout, wrapped])
@pytest.mark.parametrize("blocks", [1, 3])
def test_every_layout_of_the_large_network_makes_the_same(
    layout: Callable[[Tensors], Tensors], blocks: int, tmp_path: Path
) -> None:
    tensors = rrdb(blocks=blocks)
    network = load(layout(tensors), tmp_path)
    assert (network.factor, network.multiple) == (4, 1)
    x = picture(11, 14)
    torch.testing.assert_close(network(x), run_rrdb(tensors, x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("fold", "factor"), [(2, 2), (4, 1)])
def test_a_network_for_smaller_factors_folds_the_picture_first(fold: int, factor: int, tmp_path: Path) -> None:
    tensors = rrdb(fold=fold)
    network = load(tensors, tmp_path)
    assert (network.factor, network.multiple) == (factor, fold)
    x = picture(8, 12)
    torch.testing.assert_close(network(x), run_rrdb(tensors, x, fold=fold), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("doublings", [1, 3])
def test_the_first_layout_says_its_factor_by_its_layers(doublings: int, tmp_path: Path) -> None:
    tensors = rrdb(doublings=doublings)
    network = load(first_layout(tensors), tmp_path)
    assert network.factor == 2**doublings
    x = picture(6, 5)
    torch.testing.assert_close(network(x), run_rrdb(tensors, x, doublings=doublings), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("factor", [2, 4])
def test_the_compact_network_makes_what_it_should(factor: int, tmp_path: Path) -> None:
    tensors = compact(factor=factor)
    network = load(wrapped(tensors), tmp_path)
    assert (network.factor, network.multiple) == (factor, 1)
    x = picture(9, 7)
    torch.testing.assert_close(network(x), run_compact(tensors, x, factor=factor), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda one: one.pop("conv_hr.bias"), "lacks conv_hr.bias"),
        (lambda one: one.pop("body.0.rdb1.conv1.weight"), "is no network that enlarges pictures"),
        (lambda one: one.update({"body.0.conv1x1.weight": torch.ones(1)}), "has an unknown body.0.conv1x1.weight"),
        (lambda one: one.update({"conv_up1.weight": torch.ones(8, 9, 3, 3)}), "has a strange ups.0.weight"),
        (lambda one: one.update({"conv_first.weight": torch.ones(8, 5, 3, 3)}), "is no network that enlarges"),
        (lambda one: (one.clear(), one.update(down=torch.ones(2))), "is no network that enlarges"),
    ],
)
def test_a_file_that_is_no_such_network_is_refused_by_name(
    change: Callable[[Tensors], object], message: str, tmp_path: Path
) -> None:
    tensors = rrdb()
    change(tensors)
    with pytest.raises(BrokenCheckpoint, match=f"model tiny: tiny.safetensors {message}"):
        load(tensors, tmp_path)
