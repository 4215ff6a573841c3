"""The wire names of ``text2img``, ``img2img`` and ``inpaint``, and the only way from them to our own terms."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal

from pipelines.draft import Defaults, ImageDraft
from pipelines.errors import InvalidRequest
from pipelines.ip_adapter import IP_ADAPTERS
from pipelines.request import Sigmas, Task
from pipelines.safety import REPLACEMENTS
from schedulers.registry import parse_algorithm
from server.api.modelslab.coerce import Fields, as_flag
from server.api.modelslab.factors import read_upscale
from server.api.modelslab.loras import read_loras, surplus_strengths
from server.api.modelslab.names import read_embeddings
from server.api.modelslab.pictures import NEEDED, OPTIONAL
from server.api.modelslab.unbuilt import find_unapplied
from server.outputs import Outputs, parse_format

_PROMPT_LIMIT = 10_000
_NAME_LIMIT = 1_000
_URL_LIMIT = 4_096
#: Documented range of sizes, for ``strict_sizes``.
_SIDES = (256, 1024)
_SIDE_MULTIPLE = 8
#: Other names of pictures.
_ALIASES = {"init_image": ("image", "url")}
ADAPTER_IMAGE = "ip_adapter_image"


@dataclass(frozen=True, kw_only=True)
class Options:
    """The dialect's settings: ``ModelsLabSettings`` as plain values."""

    failed_status: Literal["error", "failed"] = "error"
    legacy_http_200: bool = False
    max_steps: int = 50
    strict_sizes: bool = False
    clip_skip_default: int = 1
    base64_mode: Literal["url", "inline"] = "url"


@dataclass(frozen=True, kw_only=True)
class Call:
    """A call, read."""

    task: Task
    #: Without the pictures: they are to be stored first.
    draft: ImageDraft
    #: What came as the pictures that the task takes, by wire name: URL, data URI or base64.
    pictures: dict[str, str]
    #: As the client wrote it; None = the server's default model.
    model: str | None
    webhook: str | None
    track_id: str | float | None
    #: Answer at once instead of waiting for the pictures.
    instant: bool
    #: Documented options that were asked for and are not applied.
    unapplied: tuple[str, ...]
    outputs: Outputs
    #: Answered as base64 text instead of links to pictures.
    base64: bool
    #: Links with scheme and host, which ours always are; only repeated.
    full_url: bool


def documented_defaults(options: Options) -> Defaults:
    """What the ModelsLab pages promise, and the ranges they give.

    Guidance 0 becomes 1: for Stable Diffusion both mean none, and the documented range starts at 1.
    """
    return Defaults(
        width=512,
        height=512,
        steps=31,
        guidance=7.5,
        strength=0.7,
        clip_skip=options.clip_skip_default,
        max_steps=options.max_steps,
        max_samples=4,
        min_guidance=1.0,
        max_guidance=20.0,
        max_true_cfg=10.0,
    )


def read_call(fields: Fields, options: Options, task: Task) -> Call:
    """The call in our own terms. Raises ``InvalidRequest``, whose field is the wire name."""
    prompt = fields.text("prompt", limit=_PROMPT_LIMIT)
    if prompt is None and task is Task.TEXT2IMG:
        raise InvalidRequest("prompt is required", field="prompt")
    pictures = {name: read_picture(fields, name) for name in NEEDED[task]} | _read_optional(fields)
    width, height = fields.integer("width", "W"), fields.integer("height", "H")
    if options.strict_sizes:
        _check_side("width", width)
        _check_side("height", height)
    loras = read_loras(fields)
    adapter = fields.choice("ip_adapter_id", limit=_NAME_LIMIT)
    draft = ImageDraft(
        prompt=prompt or "",
        negative_prompt=fields.text("negative_prompt", limit=_PROMPT_LIMIT),
        width=width,
        height=height,
        samples=fields.integer("samples"),
        steps=fields.integer("num_inference_steps", "steps"),
        guidance=fields.number("guidance_scale", "guidance"),
        seed=fields.seed(),
        scheduler=fields.choice("scheduler", limit=_NAME_LIMIT),
        sigmas=_read_sigmas(fields),
        algorithm_type=parse_algorithm(fields.choice("algorithm_type", limit=_NAME_LIMIT)),
        strength=None if task is Task.TEXT2IMG else fields.number("strength", "prompt_strength"),
        true_cfg=fields.number("true_cfg_scale"),
        clip_skip=fields.integer("clip_skip"),
        loras=loras,
        ip_adapter=adapter,
        ip_adapter_scale=None if adapter is None else fields.number("ip_adapter_scale"),
        safety=fields.flag("safety_checker"),
        safety_type=_read_safety_type(fields),
        highres=fields.flag("highres_fix"),
        upscale=read_upscale(fields),
        reproducible=fields.flag("reproducible"),
        vae=fields.choice("vae", limit=_NAME_LIMIT),
        enhance=fields.flag("enhance_prompt"),
        style=fields.choice("enhance_style", limit=_NAME_LIMIT),
        embeddings=read_embeddings(fields),
    )
    return Call(
        task=task,
        draft=draft,
        pictures=pictures,
        model=fields.text("model_id", limit=_NAME_LIMIT),
        webhook=fields.choice("webhook", limit=_URL_LIMIT),
        track_id=fields.scalar("track_id", limit=_NAME_LIMIT),
        instant=fields.flag("instant_response") or False,
        unapplied=(
            *find_unapplied(fields, applied=(*pictures, *([] if adapter is None else ["ip_adapter_scale"]))),
            *surplus_strengths(fields, len(loras)),
            *_find_surplus(fields, pictures),
        ),
        outputs=_read_outputs(fields),
        base64=fields.flag("base64") or False,
        full_url=fields.flag("full_url") or False,
    )


def _read_outputs(fields: Fields) -> Outputs:
    name = fields.text("output_format", limit=_NAME_LIMIT)
    extension = Outputs.extension if name is None else parse_format(name, field="output_format")
    return Outputs(extension=extension, temporary=fields.flag("temp") or False)


def read_picture(fields: Fields, name: str) -> str:
    """URL, data URI or base64 of a picture that is needed. Raises ``InvalidRequest``."""
    source = fields.picture(name, *_ALIASES.get(name, ()))
    if source is None:
        raise InvalidRequest(f"{name} is required", field=name)
    return source


def _read_optional(fields: Fields) -> dict[str, str]:
    found = {name: fields.picture(name) for name in OPTIONAL if as_flag(fields.raw(name)) is not False}
    return {name: source for name, source in found.items() if source is not None}


def _find_surplus(fields: Fields, names: Collection[str]) -> list[str]:
    """Clients of newer endpoints send lists of pictures; more than the first is not drawn from."""
    found = {name: fields.raw(name, *_ALIASES.get(name, ())) for name in names}
    return [f"{name} after the first" for name, value in found.items() if isinstance(value, list) and len(value) > 1]


def _read_sigmas(fields: Fields) -> Sigmas | None:
    # The pages say "default yes", but a picture is the one stock diffusers draws unless the caller asks otherwise.
    karras = fields.flag("use_karras_sigmas")
    if karras is None:
        return None
    return Sigmas.KARRAS if karras else Sigmas.DEFAULT


def _read_safety_type(fields: Fields) -> str | None:
    # Of whatever kind it is: an unknown one is the default, documented so.
    value = fields.raw("safety_checker_type")
    return None if value is None else str(value)[:_NAME_LIMIT]


def _check_side(name: str, side: int | None) -> None:
    low, high = _SIDES
    if side is not None and not low <= side <= high:
        raise InvalidRequest(f"{name} must be between {low} and {high}", field=name)
    if side is not None and side % _SIDE_MULTIPLE:
        raise InvalidRequest(f"{name} must be divisible by {_SIDE_MULTIPLE}", field=name)


def _described(kind: str, description: str, **more: Any) -> dict[str, Any]:
    return {"type": kind, "description": description, **more}


PICTURE = "PNG, JPEG or WebP as URL, data URI or base64, at most 25 MiB, 8192 pixels a side, 16.8 million in all."
_PROPERTIES: dict[str, Any] = {
    "key": _described("string", "API key; a header or the query may hold it instead."),
    "model_id": _described("string", "Model id or alias."),
    "prompt": _described("string", "What to draw.", maxLength=_PROMPT_LIMIT),
    "negative_prompt": _described("string", "What to avoid."),
    "width": _described("integer", "Pixels; rounded down to a multiple of 8 (Flux 16).", default=512),
    "height": _described("integer", "Pixels; rounded down to a multiple of 8 (Flux 16).", default=512),
    "samples": _described("integer", "Number of images.", default=1, minimum=1, maximum=4),
    "num_inference_steps": _described("integer", "Denoising steps; more than the limit is capped.", default=31),
    "guidance_scale": _described("number", "Classifier-free guidance.", default=7.5, minimum=1, maximum=20),
    "true_cfg_scale": _described("number", "Flux: a second forward with the negative prompt.", default=1, maximum=10),
    "clip_skip": _described("integer", "CLIP's layer, 1 the last; Flux has none.", default=1, minimum=1, maximum=8),
    "seed": _described("integer", "Image i uses seed + i; left out: random."),
    "scheduler": _described("string", "Name of a diffusers scheduler, or AUTOMATIC1111's name for it."),
    "use_karras_sigmas": _described("string", "yes or no; left out: as the scheduler is configured."),
    "algorithm_type": _described("string", "For DPM solvers: dpmsolver++, sde-dpmsolver++ …"),
    "lora_model": _described("string", "Names of LoRAs, with commas between them."),
    "lora_strength": _described("string", "Their strengths, -4 to 4, with commas; one for all, missing ones 1."),
    "embeddings_model": _described("string", "Names of textual inversions that the prompts use, with commas."),
    "vae": _described("string", "Name of a VAE in place of the model's own; an unknown one is not used."),
    "ip_adapter_id": _described("string", "Lets a picture be part of the prompt.", enum=list(IP_ADAPTERS)),
    "ip_adapter_scale": _described("number", "How much the picture counts.", default=0.6, minimum=0, maximum=1),
    ADAPTER_IMAGE: _described("string", f"The picture for ip_adapter_id: {PICTURE}"),
    "enhance_prompt": _described(
        "string", "yes: general words for a better picture follow the prompt; Flux: not used."
    ),
    "enhance_style": _described("string", "Name of a style whose words are put around the prompt; Flux: not used."),
    "safety_checker": _described("string", "yes: pictures that the safety checker flags are replaced."),
    "safety_checker_type": _described("string", "By what.", enum=list(REPLACEMENTS)),
    "highres_fix": _described("string", "yes: what is larger than the model's own size is drawn in two passes."),
    "output_format": _described("string", "Extension: the pictures' files.", enum=["png", "jpeg", "webp"]),
    "base64": _described("string", "yes: output holds links to base64 text, or such text, as the server is set."),
    "temp": _described("string", "yes: the pictures are deleted after 24 hours."),
    "upscale": _described("string", "yes: twice as large; or a factor, 1 to 8."),
    "reproducible": _described("boolean", "Extension: bit-equal whatever else is being drawn."),
    "instant_response": _described("string", "yes: answer at once with status processing."),
    "webhook": _described("string", "URL that is told when the images are done."),
    "track_id": _described("string", "Comes back in answers and in the webhook."),
}
_STRENGTH = _described("number", "Share of the noise that is added and of the steps drawn.", default=0.7, maximum=1)
#: What the tasks with pictures have beside or instead of the properties above.
_MORE: dict[Task, dict[str, Any]] = {
    Task.TEXT2IMG: {},
    Task.IMG2IMG: {
        "init_image": _described("string", f"What to start from: {PICTURE}"),
        "width": _described("integer", "Holds with height only; left out: the init image's, inside the limits."),
        "height": _described("integer", "Holds with width only; left out: the init image's, inside the limits."),
        "strength": _STRENGTH,
    },
    Task.INPAINT: {
        "init_image": _described("string", f"What to repaint: {PICTURE}"),
        "mask_image": _described("string", "White is repainted, black and transparent is kept; as init_image."),
        "width": _described("integer", "Pixels; left out: the init image's, inside the limits."),
        "height": _described("integer", "Pixels; left out: the init image's, inside the limits."),
        "strength": _STRENGTH,
    },
}


#: Of the properties those that say yes or no.
FLAGS = tuple(
    """use_karras_sigmas safety_checker enhance_prompt highres_fix base64 temp reproducible instant_response""".split()
)


def json_schema(task: Task) -> dict[str, Any]:
    """For /openapi.json; the routes read their bodies themselves, because clients send them in five ways."""
    required = [*NEEDED[task]] or ["prompt"]
    return {"type": "object", "required": required, "properties": _PROPERTIES | _MORE[task]}
