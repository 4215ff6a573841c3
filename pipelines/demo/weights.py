"""How demo weights are drawn and wired by hand."""

from __future__ import annotations

import json
import math
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

#: Two channels of +PIN and -PIN decide what a one-group GroupNorm divides by, whatever the other channels hold.
PIN = 100.0

# torch has one global generator per process, and modules draw their first weights from it: one builder at a time.
_ONE_AT_A_TIME = threading.Lock()


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draws from torch's global CPU generator are those of ``seed``; afterwards it is as it was before."""
    with _ONE_AT_A_TIME, torch.random.fork_rng(devices=[]), torch.device("cpu"), torch.no_grad():
        # torch.manual_seed would also seed the GPUs, which fork_rng has not been asked to restore.
        torch.default_generator.manual_seed(seed)
        yield


def pinned_std(channels: int, pin: float = PIN) -> float:
    """The deviation that GroupNorm or LayerNorm finds over ``channels`` channels of which two hold +pin and -pin."""
    return pin * math.sqrt(2 / channels)


def silence(layer: nn.Module) -> None:
    """Sets a layer's weight and bias to zero."""
    for parameter in layer.parameters():
        parameter.zero_()


def split_signs(conv: nn.Conv2d, channels: int, gain: float) -> None:
    """Makes ``conv`` copy its first inputs v to outputs (+gain v, -gain v): silu(v) - silu(-v) = v undoes any SiLU."""
    for channel in range(channels):
        conv.weight[channel, channel, 1, 1] = gain
        conv.weight[channel + channels, channel, 1, 1] = -gain


def conv_bias(conv: nn.Conv2d) -> torch.Tensor:
    """The bias of a convolution that has one."""
    assert conv.bias is not None
    return conv.bias


def scheduler(config: dict[str, Any]) -> Any:
    """The noise scheduler that a scheduler_config.json describes."""
    import diffusers

    with warnings.catch_warnings():
        # Some of diffusers' make numpy arrays of tensors in a way that numpy 2 deprecates.
        warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)
        return getattr(diffusers, config["_class_name"]).from_config(config)


def save_quietly(module: Any, folder: Path) -> None:
    """A library's own ``save_pretrained`` without its progress bar."""
    from transformers.utils import logging

    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        module.save_pretrained(folder)
    finally:
        if bars:
            logging.enable_progress_bar()


def save(pipeline: Any, folder: Path, scheduler: dict[str, Any]) -> None:
    """Writes a diffusers pipeline as a folder, its scheduler's file exactly as given.

    diffusers' own save drops the keys that the scheduler's class does not know; published checkpoints have them, and
    whoever switches to another scheduler gets them from this file.
    """
    save_quietly(pipeline, folder)
    text = json.dumps(scheduler, indent=2) + "\n"
    (folder / "scheduler" / "scheduler_config.json").write_text(text, encoding="utf-8")
