"""Drives a scheduler object through a drawing, with tensors of our choice for samples, outputs and noise."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from schedulers.errors import NotATable


@dataclass(frozen=True, kw_only=True, eq=False)
class Inputs:
    """What goes into each call; float64, (T, B, L): T calls, B rows, L elements."""

    samples: Tensor
    outputs: Tensor
    noises: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Drive:
    """What came out."""

    #: (T, B, L) float64: the sample after each call.
    moved: Tensor
    #: (T,) factor of the denoiser's input.
    input_scale: tuple[float, ...]
    #: (T,) whether the call drew noise.
    draws: tuple[bool, ...]
    #: (T + 1, 2): share of clean image and noise, before the first call and after each one but the last; there (1, 0).
    noising: Tensor


class _Noise(TorchFunctionMode):
    """Answers ``torch.randn`` with a tensor of ours.

    diffusers' schedulers draw with ``randn_tensor``, which they import by name into some forty modules. Replacing it
    there would be seen by every thread of the process. A torch function mode is on a stack that each thread has for
    itself, and takes itself off when its block is left: nothing is patched, so nothing has to be locked or restored.
    """

    def __init__(self) -> None:
        super().__init__()
        self.noise = torch.zeros(0)
        self.drawn = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.randn:
            self.drawn += 1
            return self.noise.to(kwargs.get("dtype") or torch.get_default_dtype())
        return func(*args, **kwargs)


def drive(name: str, scheduler: Any, inputs: Inputs, *, begin: int) -> Drive:
    """Make one pass over a fresh scheduler, in the order of calls of the stock pipelines.

    ``begin``: the call it starts from, set with ``set_begin_index`` as img2img and inpaint do, and as text2img does for
    Flux. Stable Diffusion's text2img leaves it unset, and the scheduler looks its position up by timestep; that finds
    the same one, or the second where rounding made two equal, and then runs past its end.
    Raises NotATable if a call draws noise twice.
    """
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(begin)
    timesteps = scheduler.timesteps[begin:]
    moved, scales, draws, noising = [], [], [], [_noising(scheduler, timesteps[:1])]
    mode = _Noise()
    with torch.no_grad(), mode:
        for t, timestep in enumerate(timesteps):
            mode.noise, mode.drawn = _spread(inputs.noises[t]), 0
            scales.append(_input_scale(scheduler, timestep))
            sample, output = _spread(inputs.samples[t]), _spread(inputs.outputs[t])
            moved.append(scheduler.step(output, timestep, sample, return_dict=False)[0].double().flatten(1))
            if mode.drawn > 1:
                raise NotATable(name, "it draws noise twice in one step")
            draws.append(mode.drawn == 1)
            if t + 1 < len(timesteps):
                noising.append(_noising(scheduler, timesteps[t + 1 : t + 2]))
    noising.append(torch.tensor([1.0, 0.0], dtype=torch.float64))
    return Drive(moved=torch.stack(moved), input_scale=tuple(scales), draws=tuple(draws), noising=torch.stack(noising))


def _spread(rows: Tensor) -> Tensor:
    """(B, L) -> (B, 1, 1, L), the least that looks like latents."""
    return rows[:, None, None, :]


def _input_scale(scheduler: Any, timestep: Tensor) -> float:
    if not hasattr(scheduler, "scale_model_input"):
        return 1.0
    return float(scheduler.scale_model_input(torch.ones(1, 1, 1, 1, dtype=torch.float64), timestep))


def _noising(scheduler: Any, timestep: Tensor) -> Tensor:
    """(2,): share of the clean image and of the noise in what ``add_noise`` makes for ``timestep``, (1,)."""
    clean, noise = torch.eye(2, dtype=torch.float64).reshape(2, 1, 1, 1, 2)
    if hasattr(scheduler, "scale_noise"):
        noised = scheduler.scale_noise(clean, timestep, noise)
    else:
        noised = scheduler.add_noise(clean, noise, timestep)
    return noised.double().flatten()  # type: ignore[no-any-return]
