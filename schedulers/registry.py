"""The public names of the schedulers: one row says everything about a name.

Importing this costs neither torch nor diffusers; the classes are named as ``"module:Class"`` and imported on use.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

#: Sigma spacings that a request may ask for; ``default`` leaves what the checkpoint's configuration says.
SIGMAS = ("default", "karras", "exponential", "beta")
#: Timestep spacings that a request may ask for; None leaves what the checkpoint's configuration says.
SPACINGS = ("leading", "trailing", "linspace")
#: The name that draws where a flow-match model is asked for a scheduler that has no flow table.
FLOW_FALLBACK = "EulerDiscreteScheduler"

_NONE: frozenset[str] = frozenset()
_ALL = frozenset({"karras", "exponential", "beta"})


@dataclass(frozen=True, kw_only=True)
class FlowSpec:
    """How a name is answered on flow-match models (Flux)."""

    target: str
    #: Names of the shift parameter and of whatever else its constructor needs.
    shift: str
    overrides: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({}))
    #: Sigma spacings that keep the flow's noise levels; elsewhere they would replace them.
    sigmas: frozenset[str] = _NONE
    #: Values of ``algorithm_type``; empty where there is no such option.
    algorithms: tuple[str, ...] = ()
    #: Whether ``set_timesteps`` takes FluxPipeline's own sigmas, or makes its grid from the number of steps.
    takes_sigmas: bool = False


@dataclass(frozen=True, kw_only=True)
class SchedulerSpec:
    """Everything about one public name."""

    #: ``"module:Class"`` of the class that draws on Stable Diffusion models.
    target: str
    #: Options forced whatever the checkpoint says.
    overrides: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({}))
    #: Options that hold where the last sigma is zero: the class sets them itself then, with a log line each time.
    zero_end: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({}))
    #: Sigma spacings it can be asked for, beyond ``default``.
    sigmas: frozenset[str] = _NONE
    #: Values of ``algorithm_type``; empty where there is no such option.
    algorithms: tuple[str, ...] = ()
    #: Whether ``timestep_spacing`` makes a difference.
    spaced: bool = True
    #: Whether it draws fresh noise between steps (for some, only with an ``sde-`` algorithm: ``algorithms`` says so).
    stochastic: bool = False
    #: How it is answered on flow-match models; None: by ``FLOW_FALLBACK``, with a warning.
    flow: FlowSpec | None = None
    #: What to tell a client whose name is answered by another; the name that draws is ``answered_by``.
    warning: str = ""
    answered_by: str = ""
    #: Up to this many steps, "leading" spacing starts so low on the noise scale that a drawing from pure noise
    #: stays noise (measured with the analytic oracle); such a start takes "trailing" unless the request fixed it.
    leading_fails_to: int = 0
    #: Name of the option that has to reach the number of steps (LCM's inner schedule); "" where there is none.
    inner_steps: str = ""


# clip_sample defaults to True in these classes and would clamp latents to +-1; the Stable Diffusion pipelines
# repair it, but only in the scheduler they are constructed with, not in one made from its configuration.
_UNCLIPPED = MappingProxyType({"clip_sample": False})
_FLOW_SOLVER = MappingProxyType({"use_flow_sigmas": True, "prediction_type": "flow_prediction"})
_MULTISTEP = ("dpmsolver", "dpmsolver++", "sde-dpmsolver", "sde-dpmsolver++")

SCHEDULERS: dict[str, SchedulerSpec] = {
    "DDPMScheduler": SchedulerSpec(
        target="diffusers:DDPMScheduler", overrides=_UNCLIPPED, stochastic=True, leading_fails_to=1
    ),
    "DDIMScheduler": SchedulerSpec(target="diffusers:DDIMScheduler", overrides=_UNCLIPPED, leading_fails_to=1),
    "PNDMScheduler": SchedulerSpec(
        # Without it six steps take fifteen calls, and img2img starts in the middle of a Runge-Kutta round.
        target="diffusers:PNDMScheduler",
        overrides=MappingProxyType({"skip_prk_steps": True}),
        leading_fails_to=2,
    ),
    "LMSDiscreteScheduler": SchedulerSpec(target="diffusers:LMSDiscreteScheduler", sigmas=_ALL, leading_fails_to=1),
    "EulerDiscreteScheduler": SchedulerSpec(
        target="diffusers:EulerDiscreteScheduler",
        sigmas=_ALL,
        flow=FlowSpec(
            target="diffusers:FlowMatchEulerDiscreteScheduler", shift="shift", sigmas=_ALL, takes_sigmas=True
        ),
        leading_fails_to=1,
    ),
    "EulerAncestralDiscreteScheduler": SchedulerSpec(
        target="diffusers:EulerAncestralDiscreteScheduler", stochastic=True, leading_fails_to=1
    ),
    "DPMSolverMultistepScheduler": SchedulerSpec(
        target="diffusers:DPMSolverMultistepScheduler",
        sigmas=_ALL,
        algorithms=_MULTISTEP,
        flow=FlowSpec(
            target="diffusers:DPMSolverMultistepScheduler",
            shift="flow_shift",
            overrides=_FLOW_SOLVER,
            algorithms=("dpmsolver++", "sde-dpmsolver++"),
        ),
    ),
    "HeunDiscreteScheduler": SchedulerSpec(
        target="diffusers:HeunDiscreteScheduler",
        sigmas=_ALL,
        flow=FlowSpec(target="diffusers:FlowMatchHeunDiscreteScheduler", shift="shift"),
        leading_fails_to=2,
    ),
    "KDPM2DiscreteScheduler": SchedulerSpec(target="diffusers:KDPM2DiscreteScheduler", sigmas=_ALL, leading_fails_to=2),
    "DPMSolverSinglestepScheduler": SchedulerSpec(
        target="diffusers:DPMSolverSinglestepScheduler",
        sigmas=_ALL,
        algorithms=("dpmsolver", "dpmsolver++", "sde-dpmsolver++"),
        zero_end=MappingProxyType({"lower_order_final": True}),
        spaced=False,
    ),
    "KDPM2AncestralDiscreteScheduler": SchedulerSpec(
        target="diffusers:KDPM2AncestralDiscreteScheduler", sigmas=_ALL, stochastic=True, leading_fails_to=3
    ),
    "UniPCMultistepScheduler": SchedulerSpec(
        target="diffusers:UniPCMultistepScheduler",
        sigmas=_ALL,
        flow=FlowSpec(target="diffusers:UniPCMultistepScheduler", shift="flow_shift", overrides=_FLOW_SOLVER),
    ),
    "DDIMInverseScheduler": SchedulerSpec(
        target="diffusers:DDIMScheduler",
        overrides=_UNCLIPPED,
        warning="DDIMInverseScheduler turns images into noise and cannot draw; DDIMScheduler was used.",
        answered_by="DDIMScheduler",
        leading_fails_to=1,
    ),
    "DEISMultistepScheduler": SchedulerSpec(target="diffusers:DEISMultistepScheduler", sigmas=_ALL),
    # diffusers' own IPNDM does not know the model's sigmas, its KarrasVe and ScoreSdeVe are for other networks.
    "IPNDMScheduler": SchedulerSpec(target="schedulers.ipndm:IPNDMSampler", spaced=False),
    "KarrasVeScheduler": SchedulerSpec(target="schedulers.karras_ve:KarrasVeSampler", spaced=False, stochastic=True),
    "ScoreSdeVeScheduler": SchedulerSpec(
        target="schedulers.score_sde_ve:ScoreSdeVeSampler", spaced=False, stochastic=True
    ),
    "LCMScheduler": SchedulerSpec(
        target="diffusers:LCMScheduler",
        overrides=_UNCLIPPED,
        spaced=False,
        stochastic=True,
        inner_steps="original_inference_steps",
    ),
}


@dataclass(frozen=True)
class Alias:
    """What a name means: a row of ``SCHEDULERS`` and the options that the name carries."""

    name: str
    sigmas: str = "default"
    algorithm_type: str | None = None


_SDE = "sde-dpmsolver++"
#: Names of AUTOMATIC1111, ComfyUI and k-diffusion, squeezed as ``_squeeze`` does. "DPM++ SDE" and "DPM++ 2S a" have no
#: class of their own in diffusers; its documentation and ModelsLab's answer them with the singlestep solver.
_ALIASES: dict[str, Alias] = {
    "plms": Alias("PNDMScheduler"),
    "lms": Alias("LMSDiscreteScheduler"),
    "euler": Alias("EulerDiscreteScheduler"),
    "eulera": Alias("EulerAncestralDiscreteScheduler"),
    "eulerancestral": Alias("EulerAncestralDiscreteScheduler"),
    "heun": Alias("HeunDiscreteScheduler"),
    "dpm2": Alias("KDPM2DiscreteScheduler"),
    "dpm2a": Alias("KDPM2AncestralDiscreteScheduler"),
    "dpm2ancestral": Alias("KDPM2AncestralDiscreteScheduler"),
    "kdpm2": Alias("KDPM2DiscreteScheduler"),
    "kdpm2a": Alias("KDPM2AncestralDiscreteScheduler"),
    "kdpm2ancestral": Alias("KDPM2AncestralDiscreteScheduler"),
    "dpm++2m": Alias("DPMSolverMultistepScheduler"),
    "dpm++2msde": Alias("DPMSolverMultistepScheduler", algorithm_type=_SDE),
    "dpm++sde": Alias("DPMSolverSinglestepScheduler", algorithm_type=_SDE),
    "dpm++2s": Alias("DPMSolverSinglestepScheduler"),
    "dpm++2sa": Alias("DPMSolverSinglestepScheduler"),
    "dpm++2sancestral": Alias("DPMSolverSinglestepScheduler"),
    "dpmsolver++": Alias("DPMSolverMultistepScheduler"),
    "dpmsolver": Alias("DPMSolverMultistepScheduler"),
    "karrasdpm": Alias("DPMSolverMultistepScheduler", sigmas="karras"),
    "unipc": Alias("UniPCMultistepScheduler"),
    "deis": Alias("DEISMultistepScheduler"),
    "unipcbh2": Alias("UniPCMultistepScheduler"),
}


def _squeeze(text: str) -> str:
    """Lower case, without spaces, underscores and dashes, ``pp`` spelt ``++``, without the suffix.

    ComfyUI's "_gpu" only says where the noise is drawn."""
    squeezed = re.sub(r"[\s_-]+", "", text.lower()).removesuffix("scheduler").removesuffix("gpu")
    return squeezed.replace("dpmpp", "dpm++")


_NAMES = {_squeeze(name): Alias(name) for name in SCHEDULERS}


def _find(squeezed: str) -> Alias | None:
    found = _NAMES.get(squeezed) or _ALIASES.get(squeezed)
    # k-diffusion's prefix, as in "k_euler_ancestral"; looked at last, for "KDPM2" and "KarrasVe" begin so too.
    if found is None and squeezed.startswith("k"):
        found = _NAMES.get(squeezed[1:]) or _ALIASES.get(squeezed[1:])
    return found


def parse_name(text: str) -> Alias | None:
    """Read a scheduler's name as clients write it; None when nobody goes by it.

    Takes the public names with or without "Scheduler", in any case, with spaces, underscores and dashes anywhere,
    and the names of AUTOMATIC1111 and k-diffusion, which may end in "Karras", "Exponential" or "Beta".
    """
    squeezed = _squeeze(text)
    found = _find(squeezed)
    if found is not None:
        return found
    for sigmas in SIGMAS[1:]:
        if squeezed.endswith(sigmas) and (found := _find(squeezed.removesuffix(sigmas))) is not None:
            return Alias(found.name, sigmas, found.algorithm_type)
    return None


def parse_algorithm(text: str | None) -> str | None:
    """Read an ``algorithm_type`` as clients write it; None when none is asked for.

    "dpmsolver+++", which the ModelsLab pages print, means sde-dpmsolver++. Other values come back in lower case:
    whether a scheduler knows them is for its row to say.
    """
    lowered = (text or "").strip().lower()
    if lowered in ("", "no", "none", "null", "default"):
        return None
    return _SDE if lowered in ("dpmsolver+++", "sde-dpmsolver+++") else lowered
