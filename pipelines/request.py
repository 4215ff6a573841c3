"""One generation in our own terms: what is drawn, and what the engine must know of any request."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Protocol


class Request(Protocol):
    """What engine and server know of a request, whatever it asks for; frozen."""

    @property
    def model(self) -> str:
        """``ModelSpec.id``, never an alias."""

    @property
    def priority(self) -> int:
        """Larger goes first."""

    @property
    def rows(self) -> int:
        """How many rows it becomes in the engine, each with a result of its own."""

    @property
    def pictures(self) -> int:
        """How many of the results are pictures, and so files."""

    @property
    def calls(self) -> int:
        """Calls of the model in all, as far as that is known before it is conditioned."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Requests of one model that differ in it go into different groups of lanes."""

    def to_json(self) -> dict[str, Any]:
        """Plain values for the job store; ``pipelines.stored.read_request`` is the inverse."""


class Sigmas(StrEnum):
    """How noise levels are spaced between the largest and the smallest."""

    #: As the scheduler's own configuration says.
    DEFAULT = "default"
    KARRAS = "karras"
    EXPONENTIAL = "exponential"
    BETA = "beta"


class Task(StrEnum):
    """What a request starts from."""

    TEXT2IMG = "text2img"
    IMG2IMG = "img2img"
    INPAINT = "inpaint"


@dataclass(frozen=True, kw_only=True)
class ImageRequest:
    """What the engine draws: every value decided, inside the model's limits."""

    #: ``ModelSpec.id``, never an alias.
    model: str
    prompt: str
    #: None and "" differ for SDXL: None means zeroed embeddings.
    negative_prompt: str | None = None
    width: int
    height: int
    #: Image i uses seed + i (mod 2**63) and is a row of its own.
    samples: int = 1
    #: As asked for; some schedulers call the denoiser more often (PNDM n + 1, Heun 2n - 1). 1..150.
    steps: int
    #: Classifier-free guidance; at most 1 means none, and the row then has one entry instead of two.
    guidance: float
    #: 0 .. 2**63 - 1.
    seed: int
    #: Name in ``schedulers.registry.SCHEDULERS``; None = the model's own.
    scheduler: str | None = None
    sigmas: Sigmas = Sigmas.DEFAULT
    #: ``dpmsolver++``, ``sde-dpmsolver++`` …; None = the scheduler's own.
    algorithm_type: str | None = None
    #: ``leading``, ``trailing``, ``linspace``; None = the scheduler's own.
    spacing: str | None = None
    #: Input picture and mask, by the SHA-256 (hex) of their stored form; see ``pipelines.inputs``. White is repainted.
    image: str | None = None
    mask: str | None = None
    #: img2img and inpaint: the share of the noise that is added and of the steps that is drawn, 0 < strength <= 1.
    strength: float = 1.0
    #: Flux: guidance by a second forward with the negative prompt (``guidance`` is the distilled one); at most 1: none.
    true_cfg: float = 1.0
    #: CLIP's hidden layer, counted from the last one: 1 is stock for SD1.5, 1 and 2 for SDXL; Flux ignores it.
    clip_skip: int = 1
    #: (name, strength) of the LoRAs laid over the model for this request's rows, in order.
    loras: tuple[tuple[str, float], ...] = ()
    #: Key of ``pipelines.ip_adapter.IP_ADAPTERS``: a picture, as ``image``, is part of the prompt. 0 <= scale <= 1.
    ip_adapter: str | None = None
    ip_adapter_scale: float = 0.6
    ip_adapter_image: str | None = None
    #: What replaces a picture that the safety checker flags (``pipelines.safety``); None: it is not checked.
    safety: str | None = None
    #: Size of a first pass that a second one at the asked size starts from (``highres_fix``); None: there is one pass.
    highres: tuple[int, int] | None = None
    #: The finished pictures are made so many times as large by an upscaler of the server's choice; 1: they are not.
    upscale: int = 1
    #: Bit-equal whatever the neighbours: drawn in forwards of its own.
    reproducible: bool = False
    #: Larger goes first.
    priority: int = 0
    #: Name of a VAE that encodes and decodes in place of the model's own.
    vae: str | None = None
    #: Names of the textual inversions that the prompt and the negative prompt may use.
    embeddings: tuple[str, ...] = ()

    @property
    def task(self) -> Task:
        """Follows from the inputs."""
        if self.image is None:
            return Task.TEXT2IMG
        return Task.IMG2IMG if self.mask is None else Task.INPAINT

    @property
    def rows(self) -> int:
        """See ``Request.rows``."""
        return self.samples

    @property
    def pictures(self) -> int:
        """See ``Request.pictures``."""
        return self.samples

    @property
    def calls(self) -> int:
        """See ``Request.calls``."""
        each = self.steps if self.task is Task.TEXT2IMG else max(int(self.steps * self.strength), 1)
        return each * self.samples

    @property
    def shape(self) -> tuple[int, ...]:
        """See ``Request.shape``."""
        return self.width, self.height

    def to_json(self) -> dict[str, Any]:
        """Plain values for the job store."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> ImageRequest:
        """The inverse of ``to_json``."""
        loras = tuple((name, strength) for name, strength in values.get("loras", ()))
        highres = None if values.get("highres") is None else tuple(values["highres"])
        embeddings = tuple(values.get("embeddings", ()))
        said = {"sigmas": Sigmas(values["sigmas"]), "loras": loras, "highres": highres, "embeddings": embeddings}
        return cls(**{**values, **said})
