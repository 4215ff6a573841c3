"""What a client asked for, and what dialect and server say where it is silent; shared by all dialects."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.errors import CheckerMissing
from pipelines.request import ImageRequest, Request, Sigmas, Task
from pipelines.safety import REPLACEMENTS


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
    #: Stored inputs, as in ``ImageRequest``, and the image's width and height; both or neither.
    image: str | None = None
    image_size: tuple[int, int] | None = None
    mask: str | None = None
    strength: float | None = None
    true_cfg: float | None = None
    clip_skip: int | None = None
    #: (name, strength) in order.
    loras: tuple[tuple[str, float], ...] = ()
    #: As in ``ImageRequest``; the picture comes with an id, or not at all.
    ip_adapter: str | None = None
    ip_adapter_scale: float | None = None
    ip_adapter_image: str | None = None
    #: Whether the safety checker looks at the pictures, and what replaces one that it flags, in any spelling.
    safety: bool | None = None
    safety_type: str | None = None
    #: Two passes, the first at the model's own size.
    highres: bool | None = None
    #: Times as large as drawn.
    upscale: int | None = None
    reproducible: bool | None = None
    priority: int = 0
    #: Name of a file or folder in DATA/vaes.
    vae: str | None = None
    #: Words are put around the prompt: general ones, and those of a style, in any spelling.
    enhance: bool | None = None
    style: str | None = None
    #: Names of textual inversions.
    embeddings: tuple[str, ...] = ()

    @property
    def task(self) -> Task:
        """As ``ImageRequest.task``."""
        if self.image is None:
            return Task.TEXT2IMG
        return Task.IMG2IMG if self.mask is None else Task.INPAINT


@dataclass(frozen=True, kw_only=True)
class Defaults:
    """What a dialect's documentation promises for a field left out, and the range it documents."""

    width: int = 512
    height: int = 512
    steps: int = 30
    guidance: float = 7.5
    samples: int = 1
    strength: float = 0.7
    clip_skip: int = 1
    #: The smaller of this and the model's own limit holds; None = the model's.
    max_steps: int | None = None
    max_samples: int | None = None
    min_guidance: float = 0.0
    max_guidance: float = 100.0
    max_true_cfg: float = 10.0


@dataclass(frozen=True, kw_only=True)
class SafetyRules:
    """What a server has decided about the safety checker."""

    #: Pictures are checked where the client does not say.
    default: bool = False
    #: Pictures are checked whatever the client says.
    force: bool = False
    #: Key of ``pipelines.safety.REPLACEMENTS`` where the client names none.
    type: str = "sensitive_content_text"
    #: The checker's weights are here.
    available: bool = False

    @property
    def fault(self) -> CheckerMissing | None:
        """Why nothing at all can be drawn."""
        return CheckerMissing() if self.force and not self.available else None

    def replacement(self, draft: ImageDraft) -> str:
        """What replaces a picture of the draft's that is flagged: the one it names, if there is one of that name."""
        asked = (draft.safety_type or "").strip().lower()
        return asked if asked in REPLACEMENTS else self.type


@dataclass(frozen=True, kw_only=True)
class Decided:
    """A request with every value decided, and one sentence for each value that is not the one asked for."""

    request: Request
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Completed(Decided):
    """A picture's."""

    request: ImageRequest
    #: What its prompts have in them already; see ``pipelines.styles``.
    enhanced: bool = False
    style: str | None = None
