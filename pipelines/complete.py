"""How a draft becomes a request that can be drawn: every value decided, inside the model's limits."""

from __future__ import annotations

import secrets
from collections.abc import Collection
from dataclasses import replace
from math import nextafter
from typing import TypedDict, TypeVar

from pipelines.auxiliary import AuxiliaryKind, FindAuxiliary, find_nothing
from pipelines.draft import Completed, Defaults, ImageDraft, SafetyRules
from pipelines.errors import InvalidRequest
from pipelines.finishing import choose_highres, choose_upscale
from pipelines.ip_adapter import ADAPTED, IP_ADAPTERS
from pipelines.model import Limits, ModelSpec
from pipelines.request import ImageRequest, Sigmas, Task
from pipelines.sizes import fit, scale_into
from pipelines.styles import PromptStyles, styled
from pipelines.unused import without_unused
from schedulers.registry import SCHEDULERS, parse_name

N = TypeVar("N", int, float)


class _AdapterValues(TypedDict):
    """The fields of ``ImageRequest`` that belong together."""

    ip_adapter: str | None
    ip_adapter_scale: float
    ip_adapter_image: str | None


#: Families whose guidance is distilled, so that a second forward is something beside it.
_TRUE_CFG_FAMILIES = frozenset({"flux"})

#: Families whose text comes from a layer of CLIP that can be chosen.
_CLIP_SKIP_FAMILIES = frozenset({"sd15", "sdxl"})
#: Families that read textual inversions.
_EMBEDDING_FAMILIES = frozenset({"sd15", "sdxl"})
#: The deepest clip_skip; SD1.5's encoder has 12 layers.
_MAX_CLIP_SKIP = 8
#: Beyond, a LoRA leaves nothing of the picture.
_MAX_LORA_STRENGTH = 4.0

#: Random seeds have as many bits as the ones users see elsewhere.
_SEED_BITS = 32


def complete(
    draft: ImageDraft,
    model: ModelSpec,
    fallback: Defaults,
    *,
    reproducible: bool = False,
    safety: SafetyRules = SafetyRules(),
    find_auxiliary: FindAuxiliary = find_nothing,
    styles: PromptStyles = PromptStyles(),
) -> Completed:
    """Decides every value: the client's within limits, else the model's default, else the dialect's.

    ``reproducible`` is the server's setting, used where the draft does not say; ``safety`` what it has decided about
    the checker; ``styles`` are what it puts around prompts where asked to. What is out of range is moved to the nearest
    value in range, what ``find_auxiliary`` does not find and a picture can be drawn without is left out, and a warning
    names it. Raises ``InvalidRequest`` for a task that the model does not do, and ``CheckerMissing``.
    """
    check_task(draft.task, model)
    warnings: list[str] = []
    draft = without_unused(draft, model, warnings)
    style = _choose_style(draft, styles, warnings)
    prompt, negative = _styled(draft, styles, style)
    limits = _tighten(model.limits, fallback)
    width, height = _fit_size(draft, model, fallback, limits, warnings)
    name, sigmas, algorithm_type = _choose_scheduler(draft, model, warnings)
    samples = _clamp("samples", draft.samples, fallback.samples, 1, limits.max_samples, warnings)
    steps = _clamp("steps", draft.steps, model.steps or fallback.steps, 1, limits.max_steps, warnings)
    request = ImageRequest(
        model=model.id,
        prompt=prompt,
        negative_prompt=negative,
        width=width,
        height=height,
        samples=samples,
        steps=steps,
        guidance=_choose_guidance(draft, model, fallback, warnings),
        seed=secrets.randbits(_SEED_BITS) if draft.seed is None else draft.seed,
        scheduler=name,
        sigmas=sigmas,
        algorithm_type=algorithm_type,
        spacing=draft.spacing,
        image=draft.image,
        mask=draft.mask,
        strength=_choose_strength(draft, steps, fallback, warnings),
        true_cfg=_choose_true_cfg(draft, model, fallback, warnings),
        clip_skip=_choose_clip_skip(draft, model, fallback, warnings),
        loras=_clamp_loras(draft, warnings),
        **_choose_adapter(draft, model, warnings),
        safety=choose_safety(draft, safety, warnings),
        highres=choose_highres(draft, model, (width, height), warnings),
        upscale=choose_upscale(draft.upscale, (width, height), warnings),
        reproducible=reproducible if draft.reproducible is None else draft.reproducible,
        priority=draft.priority,
        vae=_choose_vae(draft, find_auxiliary, warnings),
        embeddings=_choose_embeddings(draft, model, warnings),
    )
    return Completed(request=request, warnings=tuple(warnings), enhanced=bool(draft.enhance), style=style)


def check_task(task: Task, model: ModelSpec) -> None:
    """Raises ``InvalidRequest`` for what the model does not do."""
    if not model.tasks:
        raise InvalidRequest(f"{model.id} looks at pictures and draws none: POST /v1/vision.", field="model")
    if task not in model.tasks:
        raise InvalidRequest(f"{model.id} draws {_listed(model.tasks)}, not {task}.", field="model")


def _listed(tasks: Collection[Task]) -> str:
    return " and ".join(task for task in Task if task in tasks)


def _tighten(limits: Limits, fallback: Defaults) -> Limits:
    return replace(
        limits,
        max_steps=min(limits.max_steps, fallback.max_steps or limits.max_steps),
        max_samples=min(limits.max_samples, fallback.max_samples or limits.max_samples),
    )


def _clamp(name: str, asked: N | None, default: N, low: N, high: N, warnings: list[str]) -> N:
    value = default if asked is None else asked
    used = min(max(value, low), high)
    if asked is not None and used != asked:
        warnings.append(_changed(name, asked, used))
    return used


def _changed(name: str, asked: float, used: float) -> str:
    return f"{name} {_plain(asked)} was {'raised' if used > asked else 'lowered'} to {_plain(used)}."


def _plain(number: float) -> str:
    """As people write it: 1000000000, not 1e+09."""
    return str(int(number)) if number == int(number) else f"{number:g}"


def _choose_guidance(draft: ImageDraft, model: ModelSpec, fallback: Defaults, warnings: list[str]) -> float:
    if draft.guidance is None:
        # Not clamped: a distilled model's own 0 is right for it whatever range a dialect documents.
        return fallback.guidance if model.guidance is None else model.guidance
    low, high = fallback.min_guidance, fallback.max_guidance
    return _clamp("guidance", draft.guidance, fallback.guidance, low, high, warnings)


def _choose_strength(draft: ImageDraft, steps: int, fallback: Defaults, warnings: list[str]) -> float:
    """0 < strength <= 1, and never so little that no step is drawn."""
    if draft.task is Task.TEXT2IMG:
        return 1.0
    asked = fallback.strength if draft.strength is None else draft.strength
    used = max(min(asked, 1.0), least_strength(steps))
    if used != asked:
        warnings.append(_changed("strength", asked, used))
    return used


def _choose_true_cfg(draft: ImageDraft, model: ModelSpec, fallback: Defaults, warnings: list[str]) -> float:
    if draft.true_cfg is None or draft.true_cfg <= 1:
        return 1.0
    if model.family not in _TRUE_CFG_FAMILIES:
        warnings.append(f"true_cfg was not used: {model.id} has classifier-free guidance of its own.")
        return 1.0
    if draft.negative_prompt is None:
        warnings.append("true_cfg was not used: it needs a negative prompt.")
        return 1.0
    return _clamp("true_cfg", draft.true_cfg, 1.0, 1.0, fallback.max_true_cfg, warnings)


def _choose_clip_skip(draft: ImageDraft, model: ModelSpec, fallback: Defaults, warnings: list[str]) -> int:
    if model.family not in _CLIP_SKIP_FAMILIES:
        return 1
    default = fallback.clip_skip if model.clip_skip is None else model.clip_skip
    return _clamp("clip_skip", draft.clip_skip, default, 1, _MAX_CLIP_SKIP, warnings)


def _clamp_loras(draft: ImageDraft, warnings: list[str]) -> tuple[tuple[str, float], ...]:
    most = _MAX_LORA_STRENGTH
    return tuple(
        (name, _clamp(f"strength of LoRA {name[:100]}", strength, 1.0, -most, most, warnings))
        for name, strength in draft.loras
    )


def _choose_adapter(draft: ImageDraft, model: ModelSpec, warnings: list[str]) -> _AdapterValues:
    """Raises ``InvalidRequest`` for an adapter that is unknown, of another family, or without a picture."""
    name, default = draft.ip_adapter, ImageRequest.ip_adapter_scale
    if name is not None and model.family not in ADAPTED:
        warnings.append(f"ip_adapter was not used: {model.id} takes no picture as a prompt.")
        name = None
    if name is None:
        return {"ip_adapter": None, "ip_adapter_scale": default, "ip_adapter_image": None}
    facts = IP_ADAPTERS.get(name)
    if facts is None:
        raise InvalidRequest(f"IP-Adapter not found: {name[:100]}", field="ip_adapter")
    if facts.family != model.family:
        raise InvalidRequest(f"IP-Adapter {name} is for {facts.family} models, not for {model.id}", field="ip_adapter")
    if draft.ip_adapter_image is None:
        raise InvalidRequest("ip_adapter_image is required", field="ip_adapter_image")
    scale = _clamp("ip_adapter_scale", draft.ip_adapter_scale, default, 0.0, 1.0, warnings)
    return {"ip_adapter": name, "ip_adapter_scale": scale, "ip_adapter_image": draft.ip_adapter_image}


def _choose_embeddings(draft: ImageDraft, model: ModelSpec, warnings: list[str]) -> tuple[str, ...]:
    if draft.embeddings and model.family not in _EMBEDDING_FAMILIES:
        warnings.append(f"embeddings were not used: {model.id} reads no textual inversions.")
        return ()
    return tuple(dict.fromkeys(draft.embeddings))


def choose_safety(draft: ImageDraft, rules: SafetyRules, warnings: list[str]) -> str | None:
    """What replaces a flagged picture; None: nothing is checked. Raises ``CheckerMissing``."""
    if rules.fault is not None:
        raise rules.fault
    if rules.force and draft.safety is False:
        warnings.append("The safety checker was used: this server draws nothing without it.")
    if not (rules.force or (rules.default if draft.safety is None else draft.safety)):
        return None
    if not rules.available:
        warnings.append("The safety checker was not used: its weights are not here.")
        return None
    used = rules.replacement(draft)
    if draft.safety_type is not None and draft.safety_type.strip().lower() != used:
        warnings.append(f"Unknown safety checker type {draft.safety_type[:60]!r}: {used} was used.")
    return used


def _choose_vae(draft: ImageDraft, find: FindAuxiliary, warnings: list[str]) -> str | None:
    if draft.vae is None or find(AuxiliaryKind.VAE, draft.vae) is not None:
        return draft.vae
    warnings.append(f"VAE not found: {draft.vae[:100]}: the model's own was used.")
    return None


def _choose_style(draft: ImageDraft, styles: PromptStyles, warnings: list[str]) -> str | None:
    """Key of ``styles.named``."""
    style = None if draft.style is None else styles.find(draft.style)
    if draft.style is not None and style is None:
        warnings.append(f"Unknown style {draft.style[:60]!r}: none was used.")
    return style


def _styled(draft: ImageDraft, styles: PromptStyles, style: str | None) -> tuple[str, str | None]:
    prompt, negative = draft.prompt, draft.negative_prompt
    if style is not None:
        prompt, negative = styled(prompt, negative, styles.named[style])
    if draft.enhance:
        prompt, negative = styled(prompt, negative, styles.enhance)
    return prompt, negative


def least_strength(steps: int) -> float:
    """Draws one step of so many: families count ``int(steps * strength)``, and 49 * (1 / 49) is less than 1."""
    strength = 1 / steps
    while int(steps * strength) < 1:
        strength = nextafter(strength, 1.0)
    return strength


def _fit_size(
    draft: ImageDraft, model: ModelSpec, fallback: Defaults, limits: Limits, warnings: list[str]
) -> tuple[int, int]:
    """The size asked for, else the input's, else the model's, else the dialect's; inside the limits.

    For img2img width and height hold only together: one alone would distort the input (ModelsLab ignores both).
    """
    if draft.image_size is not None:
        return _fit_image_size(draft, draft.image_size, limits, warnings)
    asked_width = model.width or fallback.width if draft.width is None else draft.width
    asked_height = model.height or fallback.height if draft.height is None else draft.height
    return _fit_asked(draft, asked_width, asked_height, limits, warnings)


def _fit_image_size(
    draft: ImageDraft, image_size: tuple[int, int], limits: Limits, warnings: list[str]
) -> tuple[int, int]:
    given = {name: side for name, side in (("width", draft.width), ("height", draft.height)) if side is not None}
    scaled = scale_into(*image_size, limits)
    if len(given) == 2 or (given and draft.task is Task.INPAINT):
        return _fit_asked(draft, given.get("width", scaled[0]), given.get("height", scaled[1]), limits, warnings)
    warnings += [f"{name} {side} was not used: it needs the other side." for name, side in given.items()]
    if scaled != image_size:
        old, new = (f"{width} x {height}" for width, height in (image_size, scaled))
        warnings.append(f"The input's size {old} was changed to {new}.")
    return scaled


def _fit_asked(
    draft: ImageDraft, asked_width: int, asked_height: int, limits: Limits, warnings: list[str]
) -> tuple[int, int]:
    width, height = fit(asked_width, asked_height, limits)
    if draft.width is not None and width != draft.width:
        warnings.append(_changed("width", draft.width, width))
    if draft.height is not None and height != draft.height:
        warnings.append(_changed("height", draft.height, height))
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
