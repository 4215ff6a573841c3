"""Options that not every family has: what is asked of one that lacks it is named, and left out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from pipelines.draft import ImageDraft
from pipelines.model import ModelSpec


@dataclass(frozen=True, kw_only=True)
class FamilyOption:
    """One option, as answers name it."""

    name: str
    families: frozenset[str]
    #: Whether a draft wants it.
    asked: Callable[[ImageDraft], bool]
    #: The draft's field that is emptied, so that it is neither drawn with nor claimed; None: it does nothing anyway.
    field: str | None


_STABLE_DIFFUSION = frozenset({"sd15", "sdxl"})
#: Beside these, a family's own refusals: of a LoRA of another family, of weights inside a prompt.
OPTIONS = (
    FamilyOption(
        name="negative_prompt (without true_cfg)",
        families=_STABLE_DIFFUSION,
        asked=lambda draft: bool(draft.negative_prompt) and (draft.true_cfg or 1.0) <= 1,
        field=None,
    ),
    FamilyOption(
        name="clip_skip",
        families=_STABLE_DIFFUSION,
        asked=lambda draft: (draft.clip_skip or 1) > 1,
        field="clip_skip",
    ),
    FamilyOption(
        name="enhance_prompt",
        families=_STABLE_DIFFUSION,
        asked=lambda draft: bool(draft.enhance),
        field="enhance",
    ),
    FamilyOption(
        name="enhance_style",
        families=_STABLE_DIFFUSION,
        asked=lambda draft: draft.style is not None,
        field="style",
    ),
)


def without_unused(draft: ImageDraft, model: ModelSpec, warnings: list[str]) -> ImageDraft:
    """The draft without what the model's family lacks.

    Together they make one warning at most: clients send the same options whatever the model.
    """
    unused = [option for option in OPTIONS if model.family not in option.families and option.asked(draft)]
    if unused:
        warnings.append(f"Not used by {model.id}: {', '.join(option.name for option in unused)}.")
    emptied: dict[str, Any] = {option.field: None for option in unused if option.field is not None}
    return replace(draft, **emptied)
