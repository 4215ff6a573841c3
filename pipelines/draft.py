"""What a client asked for, and how it becomes a request that can be drawn; shared by all dialects."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace
from math import sqrt

from pipelines.model import Limits, ModelSpec
from pipelines.request import ImageRequest, Sigmas
from schedulers.registry import SCHEDULERS, parse_name

#: Random seeds have as many bits as the ones users see elsewhere.
_SEED_BITS = 32


@dataclass(frozen=True, kw_only=True)
class ImageDraft:
    """What a client asked for, already of the right types; ``None`` means not asked for."""

    prompt: str = ""
    negative_prompt: str | None = None
    width: int | None = None
    height: int | None = None
    samples: int | None = None
    steps: int | None = None
    guidance: float | None = None
    #: 0 .. 2**63 - 1; None draws a random one of 32 bits.
    seed: int | None = None
    #: In any spelling that ``schedulers.registry.parse_name`` knows; it may imply sigmas and algorithm type.
    scheduler: str | None = None
    #: Wins over what the scheduler's spelling implies.
    sigmas: Sigmas | None = None
    algorithm_type: str | None = None
    spacing: str | None = None
    reproducible: bool | None = None
    priority: int = 0


@dataclass(frozen=True, kw_only=True)
class Defaults:
    """What a dialect's documentation promises for a field left out, and the range it documents."""

    width: int = 512
    height: int = 512
    steps: int = 30
    guidance: float = 7.5
    samples: int = 1
    #: The smaller of this and the model's own limit holds; None = the model's.
    max_steps: int | None = None
    max_samples: int | None = None
    min_guidance: float = 0.0
    max_guidance: float = 100.0


@dataclass(frozen=True, kw_only=True)
class Completed:
    """A request with every value decided, and one sentence for each value that is not the one asked for."""

    request: ImageRequest
    warnings: tuple[str, ...] = ()


def complete(draft: ImageDraft, model: ModelSpec, fallback: Defaults, *, reproducible: bool = False) -> Completed:
    """Decides every value: the client's within limits, else the model's default, else the dialect's.

    ``reproducible`` is the server's setting, used where the draft does not say. Nothing is refused here; what is
    out of range is moved to the nearest value in range, and a warning names it.
    """
    warnings: list[str] = []
    limits = _tighten(model.limits, fallback)
    width, height = _fit_size(draft, model, fallback, limits, warnings)
    name, sigmas, algorithm_type = _choose_scheduler(draft, model, warnings)
    request = ImageRequest(
        model=model.id,
        prompt=draft.prompt,
        negative_prompt=draft.negative_prompt,
        width=width,
        height=height,
        samples=_clamp("samples", draft.samples, fallback.samples, 1, limits.max_samples, warnings),
        steps=_clamp("steps", draft.steps, model.steps or fallback.steps, 1, limits.max_steps, warnings),
        guidance=_choose_guidance(draft, model, fallback, warnings),
        seed=secrets.randbits(_SEED_BITS) if draft.seed is None else draft.seed,
        scheduler=name,
        sigmas=sigmas,
        algorithm_type=algorithm_type,
        spacing=draft.spacing,
        reproducible=reproducible if draft.reproducible is None else draft.reproducible,
        priority=draft.priority,
    )
    return Completed(request=request, warnings=tuple(warnings))


def _tighten(limits: Limits, fallback: Defaults) -> Limits:
    return replace(
        limits,
        max_steps=min(limits.max_steps, fallback.max_steps or limits.max_steps),
        max_samples=min(limits.max_samples, fallback.max_samples or limits.max_samples),
    )


def _clamp(name: str, asked: int | None, default: int, low: int, high: int, warnings: list[str]) -> int:
    value = default if asked is None else asked
    used = min(max(value, low), high)
    if asked is not None and used != asked:
        warnings.append(_changed(name, asked, used))
    return used


def _changed(name: str, asked: float, used: float) -> str:
    return f"{name} {asked:g} was {'raised' if used > asked else 'lowered'} to {used:g}."


def _choose_guidance(draft: ImageDraft, model: ModelSpec, fallback: Defaults, warnings: list[str]) -> float:
    if draft.guidance is None:
        # Not clamped: a distilled model's own 0 is right for it whatever range a dialect documents.
        return fallback.guidance if model.guidance is None else model.guidance
    used = min(max(draft.guidance, fallback.min_guidance), fallback.max_guidance)
    if used != draft.guidance:
        warnings.append(_changed("guidance", draft.guidance, used))
    return used


def _fit_size(
    draft: ImageDraft, model: ModelSpec, fallback: Defaults, limits: Limits, warnings: list[str]
) -> tuple[int, int]:
    asked_width = model.width or fallback.width if draft.width is None else draft.width
    asked_height = model.height or fallback.height if draft.height is None else draft.height
    width, height = fit(asked_width, asked_height, limits)
    if draft.width is not None and width != draft.width:
        warnings.append(_changed("width", draft.width, width))
    if draft.height is not None and height != draft.height:
        warnings.append(_changed("height", draft.height, height))
    return width, height


def fit(width: int, height: int, limits: Limits) -> tuple[int, int]:
    """The nearest size that the limits allow: multiples by rounding down, too many pixels by scaling both sides.

    >>> fit(1000, 1001, Limits(multiple=16))
    (992, 992)
    """
    low = -(-limits.min_side // limits.multiple) * limits.multiple
    high = max(limits.max_side // limits.multiple * limits.multiple, low)

    def side(length: float) -> int:
        # The upper bound comes first: int() of a side like 1e18 is fine, its multiples need no further care.
        return max(min(int(length), high) // limits.multiple * limits.multiple, low)

    width, height = side(width), side(height)
    if width * height > limits.max_pixels:
        scale = sqrt(limits.max_pixels / (width * height))
        width, height = side(width * scale), side(height * scale)
    # A side that could not shrink below the minimum leaves its share to the other one.
    if width * height > limits.max_pixels:
        if width >= height:
            width = side(limits.max_pixels / height)
        else:
            height = side(limits.max_pixels / width)
    return width, height


def _choose_scheduler(
    draft: ImageDraft, model: ModelSpec, warnings: list[str]
) -> tuple[str | None, Sigmas, str | None]:
    alias = None if draft.scheduler is None else parse_name(draft.scheduler)
    if draft.scheduler is not None and alias is None:
        warnings.append(f"Unknown scheduler {draft.scheduler[:60]!r}: the model's own was used.")
    if alias is None:
        name, sigmas, algorithm = model.scheduler, draft.sigmas or Sigmas.DEFAULT, draft.algorithm_type
    else:
        name = alias.name
        sigmas = draft.sigmas or Sigmas(alias.sigmas)
        algorithm = draft.algorithm_type or alias.algorithm_type
    row = None if name is None else SCHEDULERS.get(name)
    # Without a row the checkpoint's own scheduler draws, and only the engine knows what that can do.
    if row is not None and sigmas is not Sigmas.DEFAULT and sigmas not in row.sigmas:
        warnings.append(f"{name} has no {sigmas} sigmas: its own were used.")
        sigmas = Sigmas.DEFAULT
    if row is not None and algorithm is not None and algorithm not in row.algorithms:
        warnings.append(f"{name} has no algorithm_type {algorithm[:60]!r}: its own was used.")
        algorithm = None
    return name, sigmas, algorithm
