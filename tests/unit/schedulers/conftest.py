"""Configurations as published checkpoints have them, and a drawing from a compiled table."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from schedulers.table import SamplerTable
from schedulers.update import advance

Model = Callable[[Tensor, float], Tensor]
Edit = Callable[[Tensor, int], Tensor]


@pytest.fixture
def sd15() -> dict[str, Any]:
    """scheduler_config.json of Stable Diffusion 1.5."""
    return {
        "_class_name": "PNDMScheduler",
        "_diffusers_version": "0.6.0",
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "num_train_timesteps": 1000,
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "steps_offset": 1,
        "trained_betas": None,
        "clip_sample": False,
    }


@pytest.fixture
def flux() -> dict[str, Any]:
    """scheduler_config.json of FLUX.1-dev."""
    return {
        "_class_name": "FlowMatchEulerDiscreteScheduler",
        "base_image_seq_len": 256,
        "base_shift": 0.5,
        "max_image_seq_len": 4096,
        "max_shift": 1.15,
        "num_train_timesteps": 1000,
        "shift": 3.0,
        "use_dynamic_shifting": True,
    }


def _unchanged(x: Tensor, t: int) -> Tensor:
    return x


@pytest.fixture
def draw() -> Callable[..., Tensor]:
    """draw(table, model, x, generator, edit) -> the last latents, (1, ...): one row, through ``advance`` alone."""

    def run(
        table: SamplerTable, model: Model, x: Tensor, generator: torch.Generator, edit: Edit = _unchanged
    ) -> Tensor:
        hidden = torch.zeros(1, 3, *x.shape[1:])
        for t in range(table.calls):
            out = model(x * float(table.input_scale[t]), float(table.timesteps[t]))
            noise = torch.randn(x.shape, generator=generator) if table.draws[t] else torch.zeros_like(x)
            stacked = torch.cat([x[:, None], hidden, out[:, None], noise[:, None]], dim=1)
            moved = advance(stacked, torch.tensor(table.matrices[t])[None], torch.tensor([table.norm_scaled[t]]))
            x, hidden = edit(moved[:, 0], t), moved[:, 1:]
        return x

    return run
