"""Makes the scheduler object that a stock user would get, or says why not."""

from __future__ import annotations

import importlib
import inspect
import json
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from schedulers.base import NoiseScheduler
from schedulers.errors import OptionRefused
from schedulers.flow import Flow, flow_sigmas
from schedulers.registry import FLOW_FALLBACK, SCHEDULERS, FlowSpec, SchedulerSpec


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides a sampler table; hashable, it is the cache's key."""

    #: A row of the registry.
    name: str
    #: The checkpoint's scheduler_config.json as JSON text with sorted keys.
    config: str
    steps: int
    #: Requested steps that are skipped at the start (img2img, inpaint).
    skipped: int
    sigmas: str
    algorithm_type: str | None
    spacing: str | None
    flow: Flow | None
    repair: bool


@dataclass(frozen=True, kw_only=True, eq=False)
class Built:
    """A scheduler with its timesteps set, ready to be driven once."""

    scheduler: NoiseScheduler
    #: The public name that draws.
    name: str
    warnings: tuple[str, ...]


#: Held while warnings are filtered: the filters belong to the process, and two threads that save and restore them
#: crosswise would leave one's filters behind.
_FILTERING = threading.Lock()


@contextmanager
def quiet_diffusers() -> Iterator[None]:
    """Keep the warnings that diffusers' schedulers cause by themselves from becoming errors under ``-W error``."""
    with _FILTERING, warnings.catch_warnings():
        # numpy 2 about tensors handed to numpy functions, in almost every set_timesteps.
        warnings.filterwarnings("ignore", "__array__ implementation doesn't accept a copy", DeprecationWarning)
        warnings.filterwarnings("ignore", "__array_wrap__ must accept context and return_scalar", DeprecationWarning)
        # algorithm_type "dpmsolver" and "sde-dpmsolver", which clients may still ask for.
        warnings.filterwarnings("ignore", "`algorithm_types", FutureWarning)
        yield


#: Nearest schedulers that rescale betas to zero terminal SNR (Lin et al. 2023, arXiv 2305.08891); Euler for others.
ZERO_SNR_FALLBACKS = {
    "KDPM2AncestralDiscreteScheduler": "EulerAncestralDiscreteScheduler",
    "KarrasVeScheduler": "EulerAncestralDiscreteScheduler",
    "ScoreSdeVeScheduler": "EulerAncestralDiscreteScheduler",
    "DPMSolverSinglestepScheduler": "DPMSolverMultistepScheduler",
}


def build(recipe: Recipe) -> Built:
    """The scheduler of a recipe, as ``Cls.from_config(pipe.scheduler.config, **overrides)`` makes it.

    Raises OptionRefused for options that no table can hold, and whatever diffusers raises for those it refuses."""
    name, told = _answered_by(recipe)
    spec = SCHEDULERS[name]
    recipe, more = _possible(replace(recipe, name=name), spec.flow if recipe.flow else spec)
    scheduler = _flow_scheduler(recipe, spec.flow) if recipe.flow and spec.flow else _scheduler(recipe, spec)
    _refuse_nonlinear(name, scheduler.config)
    return Built(scheduler=scheduler, name=name, warnings=(*told, *more))


def _answered_by(recipe: Recipe) -> tuple[str, tuple[str, ...]]:
    """-> the name that draws, and what to say about it."""
    spec = SCHEDULERS[recipe.name]
    if recipe.flow is not None and spec.flow is None:
        return FLOW_FALLBACK, (f"{recipe.name} has no flow-matching form; flow-match Euler was used.",)
    name, told = (spec.answered_by or recipe.name), ((spec.warning,) if spec.warning else ())
    if json.loads(recipe.config).get("rescale_betas_zero_snr") and not _takes_zero_snr(name):
        capable = ZERO_SNR_FALLBACKS.get(name, "EulerDiscreteScheduler")
        told = (*told, f"{name} cannot draw a model of zero terminal signal-to-noise ratio; {capable} was used.")
        name = capable
    return name, told


def _takes_zero_snr(name: str) -> bool:
    return "rescale_betas_zero_snr" in inspect.signature(_class(SCHEDULERS[name].target).__init__).parameters


def _possible(recipe: Recipe, spec: SchedulerSpec | FlowSpec | None) -> tuple[Recipe, tuple[str, ...]]:
    """-> the recipe without the options that this scheduler has not, and a sentence for each of them."""
    assert spec is not None, "_answered_by gives a name that has a flow form"
    told = []
    if recipe.sigmas != "default" and recipe.sigmas not in spec.sigmas:
        told.append(f"{recipe.name} does not support {recipe.sigmas} sigmas; they were ignored.")
        recipe = replace(recipe, sigmas="default")
    if recipe.algorithm_type is not None and recipe.algorithm_type not in spec.algorithms:
        told.append(f"{recipe.name} does not support algorithm_type {recipe.algorithm_type[:40]}; it was ignored.")
        recipe = replace(recipe, algorithm_type=None)
    if recipe.spacing is not None and not (isinstance(spec, SchedulerSpec) and spec.spaced):
        told.append(f"{recipe.name} has a timestep spacing of its own; {recipe.spacing} was ignored.")
        recipe = replace(recipe, spacing=None)
    if isinstance(spec, SchedulerSpec) and _starts_too_low(recipe, spec):
        told.append(f"{recipe.name} with leading spacing leaves noise at {recipe.steps} steps; trailing was used.")
        recipe = replace(recipe, spacing="trailing")
    return recipe, tuple(told)


def _starts_too_low(recipe: Recipe, spec: SchedulerSpec) -> bool:
    if recipe.spacing is not None or recipe.skipped or recipe.steps > spec.leading_fails_to:
        return False
    config = json.loads(recipe.config)
    return bool(config.get("timestep_spacing", _default(_class(spec.target), "timestep_spacing")) == "leading")


def _class(target: str) -> Any:
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


def _default(cls: Any, option: str) -> object:
    parameter = inspect.signature(cls.__init__).parameters.get(option)
    return parameter.default if parameter else None


def _known(cls: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that the class takes. ``from_config`` drops the same ones, but logs a warning for each."""
    known = inspect.signature(cls.__init__).parameters
    return {key: value for key, value in options.items() if key in known}


def _scheduler(recipe: Recipe, spec: SchedulerSpec) -> NoiseScheduler:
    """The scheduler of a Stable Diffusion model."""
    options = _config_options(recipe, spec)
    if not spec.target.startswith("diffusers:"):
        scheduler = _own(spec, options)
        scheduler.set_timesteps(recipe.steps)
        return scheduler  # type: ignore[no-any-return]
    cls = _class(spec.target)
    options |= {**spec.overrides, **_sigma_flags(recipe.sigmas)}
    if recipe.spacing is not None:
        options["timestep_spacing"] = recipe.spacing
    if recipe.algorithm_type is not None:
        options["algorithm_type"] = recipe.algorithm_type
    if options.get("algorithm_type") in ("dpmsolver", "sde-dpmsolver"):
        # In the noise form the last step divides by the last sigma: the classes refuse zero.
        options["final_sigmas_type"] = "sigma_min"
    if options.get("final_sigmas_type", "zero") == "zero":
        options |= spec.zero_end
    scheduler = cls(**_known(cls, options))
    if spec.inner_steps and recipe.steps > scheduler.config[spec.inner_steps]:
        scheduler.set_timesteps(recipe.steps, **{spec.inner_steps: recipe.steps})
    else:
        scheduler.set_timesteps(recipe.steps)
    return scheduler  # type: ignore[no-any-return]


def _config_options(recipe: Recipe, spec: SchedulerSpec) -> dict[str, Any]:
    """The checkpoint's options, repaired as the pipeline constructors do, without what another class meant.

    The raw JSON stands for ``pipe.scheduler.config``: what the loaded scheduler adds are its class's defaults, which
    ``from_config`` leaves out again (they are listed in ``_use_default_values``)."""
    options = {key: value for key, value in json.loads(recipe.config).items() if not key.startswith("_")}
    if recipe.repair and options.get("steps_offset", 1) != 1:
        options["steps_offset"] = 1
    if options.get("algorithm_type") not in spec.algorithms:
        options.pop("algorithm_type", None)
    return options


def _sigma_flags(sigmas: str) -> dict[str, bool]:
    if sigmas == "default":
        return {}
    return {f"use_{kind}_sigmas": kind == sigmas for kind in ("karras", "exponential", "beta")}


def _own(spec: SchedulerSpec, options: Mapping[str, Any]) -> Any:
    """A sampler of ours, on the betas as diffusers makes them of the checkpoint's configuration."""
    import diffusers

    betas = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas")
    facts = {key: options[key] for key in (*betas, "rescale_betas_zero_snr") if options.get(key) is not None}
    alphas = diffusers.EulerDiscreteScheduler(**facts).alphas_cumprod
    return _class(spec.target)(alphas, options.get("prediction_type", "epsilon"))


def _flow_scheduler(recipe: Recipe, spec: FlowSpec) -> NoiseScheduler:
    """The scheduler of a flow-match model.

    The solvers are told the shift and nothing else of the checkpoint's flow-match options, which mean other things to
    them (a dynamic shift demands mu with every call)."""
    assert recipe.flow is not None
    cls, config = _class(spec.target), json.loads(recipe.config)
    options: dict[str, Any] = dict(spec.overrides)
    if recipe.algorithm_type is not None:
        options["algorithm_type"] = recipe.algorithm_type
    if not spec.takes_sigmas:
        options |= {"num_train_timesteps": config.get("num_train_timesteps", 1000), spec.shift: recipe.flow.factor}
        scheduler = cls(**options)
        scheduler.set_timesteps(recipe.steps)
        return scheduler  # type: ignore[no-any-return]
    options |= config | _sigma_flags(recipe.sigmas)
    options["use_dynamic_shifting"] = recipe.flow.mu is not None
    if recipe.flow.shift is not None:
        options[spec.shift] = recipe.flow.shift
    scheduler = cls(**_known(cls, options))
    scheduler.set_timesteps(sigmas=flow_sigmas(recipe.steps), mu=recipe.flow.mu)
    return scheduler  # type: ignore[no-any-return]


def _refuse_nonlinear(name: str, config: Mapping[str, Any]) -> None:
    """Raise OptionRefused where an option bends the update; the check of the table would only notice some of it."""
    for option in ("thresholding", "clip_sample"):
        if config.get(option):
            raise OptionRefused(name, option, config[option])
    if config.get("variance_type") in ("learned", "learned_range"):
        raise OptionRefused(name, "variance_type", config["variance_type"])
