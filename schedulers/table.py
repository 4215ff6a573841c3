"""A sampler is a table: a scheduler, compiled for one number of steps.

Every scheduler is linear in sample, model output and fresh noise; only the network is not. So the real scheduler
object, run once on unit vectors instead of images, gives up its exact coefficients, and each call of each sampler
becomes one small matrix: [x'; h'] = M_t [x; h; out; noise].
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from schedulers.build import Built, Recipe, build, quiet_diffusers
from schedulers.check import largest_error, trial
from schedulers.errors import NotATable, SchedulerError, StepsRefused, UnknownScheduler
from schedulers.flow import Flow
from schedulers.probe import drive
from schedulers.realise import realise
from schedulers.registry import SIGMAS, SPACINGS, parse_algorithm, parse_name
from schedulers.score_sde_ve import ScoreSdeVeSampler

#: Beyond this some schedulers are biased by their integer timesteps, and near 1000 they fail.
MAX_STEPS = 150
#: How far a step of the table may be from the scheduler's, relative to the scheduler's.
TOLERANCE = 1e-5


@dataclass(frozen=True, kw_only=True, eq=False)
class SamplerTable:
    """What draws one image: T calls of the denoiser, and the matrix that is applied after each."""

    #: Public name that draws, after substitutions.
    scheduler: str
    #: A sentence for whatever was done otherwise than asked.
    warnings: tuple[str, ...]
    #: (T,) what the denoiser is given at each call; 0 to 1000, for flow-match models too.
    timesteps: NDArray[np.float32]
    #: (T,) x is multiplied by this before the denoiser.
    input_scale: NDArray[np.float32]
    #: (T, 4, 6): [x', h1', h2', h3'] = M [x, h1, h2, h3, out, noise]. Unused hidden tensors have zero rows and columns.
    #: Where ``norm_scaled``, the matrix is that of r = 1 and h1' is eps, whose norm r is computed from.
    matrices: NDArray[np.float32]
    #: (T,) whether the call draws fresh noise, even where its coefficient is zero: the generator must move on.
    draws: tuple[bool, ...]
    #: (T,) whether the matrix's first row is to be scaled by r = |noise| / |eps| (``update.advance``).
    norm_scaled: tuple[bool, ...]
    #: text2img, and inpaint at strength 1: the first latents are noise times this.
    init_scale: float
    #: img2img: the first latents are start[0] * clean + start[1] * noise.
    start: tuple[float, float]
    #: (T, 2) inpaint: after call t the kept area is blend[t, 0] * clean + blend[t, 1] * noise; the last is (1, 0).
    blend: NDArray[np.float32]
    #: Hidden tensors that it uses, 0 to 3.
    hidden: int

    @property
    def calls(self) -> int:
        """T, the number of calls of the denoiser."""
        return len(self.timesteps)


def compile_table(
    name: str,
    config: Mapping[str, Any],
    steps: int,
    *,
    strength: float | None = None,
    sigmas: str = "default",
    algorithm_type: str | None = None,
    spacing: str | None = None,
    flow: Flow | None = None,
    repair: bool = True,
) -> SamplerTable:
    """Compile a scheduler for ``steps`` steps (1 to 150); cached, the same arguments give the same object.

    ``name``: as clients write it (``registry.parse_name``); options that the name carries hold where the argument is
    left at its default. ``config``: the checkpoint's scheduler_config.json.
    ``strength``: for img2img and inpaint, 0 to 1, the share of the steps that is drawn: Stable Diffusion skips the
    first n - int(n strength), Flux the first int(n - n strength). None for text2img.
    ``sigmas``: default, karras, exponential or beta. ``spacing``: leading, trailing or linspace, None for the
    checkpoint's. ``algorithm_type``: as clients write it. What the scheduler has not is ignored, with a warning.
    ``flow``: for flow-match models. ``repair``: set ``steps_offset`` to 1, as the constructors of the Stable Diffusion
    1.x pipelines do; those of SDXL do not.

    Raises UnknownScheduler, StepsRefused, OptionRefused, NotATable (all SchedulerError).
    """
    alias = parse_name(name)
    if alias is None:
        raise UnknownScheduler(name)
    _refuse_values(steps, sigmas, spacing)
    recipe = Recipe(
        name=alias.name,
        config=json.dumps(config, sort_keys=True, default=list),
        steps=steps,
        skipped=_skipped(steps, strength, is_flow=flow is not None),
        sigmas=alias.sigmas if sigmas == "default" else sigmas,
        algorithm_type=parse_algorithm(algorithm_type) or alias.algorithm_type,
        spacing=spacing,
        flow=flow,
        repair=repair,
    )
    return _compile(recipe)


def _refuse_values(steps: int, sigmas: str, spacing: str | None) -> None:
    if not 1 <= steps <= MAX_STEPS:
        raise StepsRefused(f"steps must be from 1 to {MAX_STEPS}, not {steps}")
    if sigmas not in SIGMAS:
        raise SchedulerError(f"sigmas must be one of {', '.join(SIGMAS)}, not {sigmas[:40]!r}")
    if spacing is not None and spacing not in SPACINGS:
        raise SchedulerError(f"spacing must be one of {', '.join(SPACINGS)}, not {spacing[:40]!r}")


def _skipped(steps: int, strength: float | None, *, is_flow: bool) -> int:
    """``get_timesteps`` of the stock img2img and inpaint pipelines, for requested steps."""
    if strength is None:
        return 0
    if not 0 <= strength <= 1:
        raise StepsRefused(f"strength must be from 0 to 1, not {strength}")
    skipped = int(steps - steps * strength) if is_flow else steps - int(steps * strength)
    if skipped >= steps:
        raise StepsRefused(f"strength {strength} of {steps} steps leaves no step to draw")
    return skipped


@lru_cache(maxsize=1024)
def _compile(recipe: Recipe) -> SamplerTable:
    try:
        with quiet_diffusers():
            built = build(recipe)
            table = read_table(built, recipe.skipped * built.scheduler.order)
    except SchedulerError:
        raise
    except Exception as error:
        # diffusers refuses combinations with half a dozen exception types; its texts quote file paths and objects.
        raise NotATable(recipe.name, f"diffusers does not take these options for {recipe.steps} steps") from error
    for array in (table.timesteps, table.input_scale, table.matrices, table.blend):
        array.setflags(write=False)
    return table


def read_table(built: Built, begin: int) -> SamplerTable:
    """Read the table off a scheduler, started at call ``begin``, and check it. Raises NotATable."""
    scheduler: Any = built.scheduler
    timesteps = scheduler.timesteps[begin:].to(torch.float32).numpy().copy()
    inputs = trial(len(timesteps))
    run = drive(built.name, copy.deepcopy(scheduler), inputs, begin=begin)
    if not run.moved.isfinite().all():
        raise NotATable(built.name, "its steps are not finite")
    response = run.moved[:, 0]
    if isinstance(scheduler, ScoreSdeVeSampler):
        linear = copy.deepcopy(scheduler)
        linear.ratio = 1.0
        response = drive(built.name, linear, inputs, begin=begin).moved[:, 0]
    matrices = realise(response.numpy())
    if matrices is None:
        raise NotATable(built.name, "it remembers more than three tensors")
    scaled = [False] * len(timesteps)
    if isinstance(scheduler, ScoreSdeVeSampler):
        scaled = _scale_by_norms(scheduler, matrices, begin)
    table = SamplerTable(
        scheduler=built.name,
        warnings=built.warnings,
        timesteps=timesteps,
        input_scale=np.array(run.input_scale, dtype=np.float32),
        matrices=matrices.astype(np.float32),
        draws=run.draws,
        norm_scaled=tuple(scaled),
        # Flow-match schedulers have none: their noise level starts at one.
        init_scale=float(getattr(scheduler, "init_noise_sigma", 1.0)),
        start=(float(run.noising[0, 0]), float(run.noising[0, 1])),
        blend=run.noising[1:].numpy().astype(np.float32),
        hidden=int(np.any(matrices[:, 1:4], axis=(0, 2)).sum()),
    )
    error = largest_error(table.matrices, table.norm_scaled, inputs, run)
    if not error <= TOLERANCE:
        raise NotATable(built.name, f"its table is {error:.1e} off")
    return table


def _scale_by_norms(scheduler: ScoreSdeVeSampler, matrices: NDArray[np.float64], begin: int) -> list[bool]:
    """Mark the corrector's calls, and let their h1' be eps, from whose norm the update computes r."""
    calls = scheduler.calls[begin:]
    for matrix, call in zip(matrices, calls, strict=True):
        if not call.second:
            matrix[1, 4], matrix[1, 0] = scheduler.epsilon_weights(call)
    return [not call.second for call in calls]
