"""The route table: every path of the API, its aliases, and what answers there. Paths are those behind ``/api``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any

from pipelines.request import Task
from server.api.modelslab import account, enterprise, loading, models, uploads
from server.api.modelslab.answers import fetch
from server.api.modelslab.captioning import CAPTION_SCHEMA, caption
from server.api.modelslab.documentation import CAPTIONED, DRAWN
from server.api.modelslab.drawing import EDITING, IMAGES, REALTIME, Style, draw
from server.api.modelslab.model_ids import MODEL_SCHEMA
from server.api.modelslab.outpainting import OUTPAINT_SCHEMA, outpaint
from server.api.modelslab.schemas import json_schema
from server.api.modelslab.unavailable import refuse
from server.api.modelslab.upscaling import SCHEMA, super_resolution, super_resolution_v3
from server.api.modelslab.visit import Handle
from server.keys import Scope

#: Before an alias of two words: the dedicated server's families, and what the Dart SDK doubles.
_SEGMENT = "/v1/enterprise/{segment}"
_DART = ("/v6/images/text2img", f"{_SEGMENT}/text2img")


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """One row."""

    #: In the documentation.
    name: str
    summary: str
    #: The documented path first.
    paths: tuple[str, ...]
    handle: Handle
    methods: tuple[str, ...] = ("POST",)
    #: What the key must be good for; None: any key will do.
    scope: Scope | None = Scope.GENERATE
    #: JSON schema of the body.
    schema: dict[str, Any] = field(default_factory=dict)
    #: JSON schema of the answer; empty where it is small and varies.
    answer: Mapping[str, Any] = field(default_factory=dict)
    #: A body.
    example: dict[str, Any] = field(default_factory=dict)
    #: Calls of one key; None: as many as come.
    per_minute: int | None = None
    #: Errors hold their HTTP status as ``code``, too.
    coded: bool = False


def _under(*prefixes: str, name: str) -> tuple[str, ...]:
    return tuple(f"{prefix}/{name}" for prefix in prefixes)


def _drawing(style: Style, task: Task, summary: str, *paths: str) -> Endpoint:
    return Endpoint(
        name=f"{style.family}: {task}",
        summary=summary,
        paths=paths,
        handle=partial(draw, task=task, style=style),
        schema=json_schema(task),
        answer=DRAWN,
        example=_EXAMPLES[task],
    )


_SOURCE = {"init_image": "https://example.com/bridge.png", "prompt": "a red bridge at night", "strength": 0.7}
_EXAMPLES: Mapping[Task, dict[str, Any]] = MappingProxyType(
    {
        Task.TEXT2IMG: {
            "key": "your_api_key",
            "model_id": "flux",
            "prompt": "ultra realistic portrait of a cyberpunk woman, blue eyes, cinematic lighting, 8K",
            "negative_prompt": "blurry, low quality, distorted",
            "width": 512,
            "height": 512,
            "samples": 1,
            "num_inference_steps": 31,
            "guidance_scale": 7.5,
        },
        Task.IMG2IMG: {"key": "your_api_key", "model_id": "sdxl", **_SOURCE},
        Task.INPAINT: {
            "key": "your_api_key",
            "model_id": "sdxl",
            **_SOURCE,
            "mask_image": "https://example.com/mask.png",
        },
    }
)
_PROMPT = "Draws images from a prompt; answers success, or processing when it takes longer."
_IMAGE = "Draws images from a prompt and an image; answers as text2img."
_MASK = "Repaints an image where a mask is white; answers as text2img."
_DREAMBOOTH = ("/v4/dreambooth", "/v3/dreambooth")
_COMMUNITY = ("/v6/images", *_DREAMBOOTH, "/v1/enterprise", _SEGMENT, *_DART)
_ENTERPRISE = ("/v1/enterprise", _SEGMENT, f"{_SEGMENT}/text2img")
_REALTIME = ("/v6/realtime", "/v3", "/v1/enterprise/realtime")
_EDITING = ("/v6/image_editing", "/v1/image_editing", "/v1/enterprise/image_editing")


def _draws() -> Iterator[Endpoint]:
    # The families without a model come first: a path with a placeholder would match theirs, too.
    for task, summary in ((Task.TEXT2IMG, _PROMPT), (Task.IMG2IMG, _IMAGE), (Task.INPAINT, _MASK)):
        yield _drawing(REALTIME, task, summary, *_under(*_REALTIME, name=task))
    edits = (*_under(*_EDITING, name="inpaint"), *_under(*_EDITING, name="inpainting"))
    yield _drawing(EDITING, Task.INPAINT, _MASK, *edits)
    removals = (*_under(*_EDITING, name="object_removal"), *_under(*_EDITING, name="object_remover"))
    yield Endpoint(
        name="image_editing: object_removal",
        summary="Repaints what a mask covers with what is around it; answers as text2img.",
        paths=removals,
        handle=partial(draw, task=Task.INPAINT, style=EDITING),
        schema=json_schema(Task.INPAINT),
        answer=DRAWN,
    )
    more = {
        Task.TEXT2IMG: ("/v4/dreambooth", "/v3/dreambooth", "/v7/images/text-to-image"),
        Task.IMG2IMG: ("/v7/images/image-to-image",),
        Task.INPAINT: ("/v7/images/inpaint",),
    }
    for task, summary in ((Task.TEXT2IMG, _PROMPT), (Task.IMG2IMG, _IMAGE), (Task.INPAINT, _MASK)):
        yield _drawing(IMAGES, task, summary, *_under(*_COMMUNITY, name=task), *more[task])


def _others() -> Iterator[Endpoint]:
    yield Endpoint(
        name="outpaint",
        summary="Draws around an image, up to a larger canvas; answers as text2img.",
        paths=(*_under(*_EDITING, name="outpaint"), *_under(*_EDITING, name="outpainting")),
        handle=outpaint,
        schema=OUTPAINT_SCHEMA,
        answer=DRAWN,
    )
    yield Endpoint(
        name="caption",
        summary="Describes an image; output is a list of one text.",
        paths=(*_under(*_EDITING, name="caption"), *_under(*_EDITING, name="img_to_text")),
        handle=caption,
        schema=CAPTION_SCHEMA,
        answer=CAPTIONED,
        example={"key": "your_api_key", "init_image": "https://example.com/bridge.png", "length": "normal"},
    )
    yield Endpoint(
        name="model_reload",
        summary="Loads a model: success when it is there, processing while it is loaded.",
        paths=_under(*_COMMUNITY, name="model_reload"),
        handle=loading.reload,
        schema=MODEL_SCHEMA,
    )


def _upscales() -> Iterator[Endpoint]:
    yield Endpoint(
        name="image_editing: super_resolution",
        summary="Makes a picture larger; answers as text2img.",
        paths=_under(*_EDITING, name="super_resolution"),
        handle=super_resolution,
        schema=SCHEMA,
        answer=DRAWN,
    )
    yield Endpoint(
        name="super_resolution",
        summary="Makes a picture larger; output is one link instead of a list.",
        paths=(
            *_under("/v3", "/v1/enterprise", _SEGMENT, name="super_resolution"),
            *_under("/v1/enterprise/super_resolution", "/v1/enterprise/super-resolution", name="make"),
        ),
        handle=super_resolution_v3,
        schema=SCHEMA,
    )


def _account() -> Iterator[Endpoint]:
    both = ("POST", "GET")
    yield Endpoint(
        name="request_count",
        summary="How many requests are not done; 30 times a minute.",
        paths=("/v6/processing/request_count",),
        handle=account.request_count,
        methods=both,
        scope=None,
        per_minute=30,
    )
    rows = (
        ("assets_generated", "Finished requests, in pages.", account.assets_generated, "/v6/assets_generated"),
        ("clear_cache", "Nothing is cached that could be out of date.", account.clear_cache, "/v5/clear_cache"),
        ("wallet_balance", "A stub: nothing is charged.", account.wallet_balance, "/wallet_balance"),
        ("subscribed_products", "A stub: nothing is sold.", account.subscribed_products, "/subscribed_products"),
        ("system_load", "How many requests wait, and how long.", account.system_load, "/v3/system_load"),
    )
    for name, summary, handle, path in rows:
        yield Endpoint(name=name, summary=summary, paths=(path,), handle=handle, methods=both, scope=None)


def _loading() -> Iterator[Endpoint]:
    models = ("/v3/load_model", "/v4/load_model", *_under(*_ENTERPRISE, name="load_model"))
    yield Endpoint(
        name="load_model",
        summary="Fetches a model or LoRA, offered once it is whole. Needs the scope models:write.",
        paths=(*models, *_under(*_ENTERPRISE, name="load_model_v2")),
        handle=loading.load_model,
        scope=Scope.MODELS_WRITE,
        schema=loading.LOAD_MODEL_SCHEMA,
        coded=True,
    )
    yield Endpoint(
        name="load_vae",
        summary="Fetches a VAE, offered once it is whole. Needs the scope models:write.",
        paths=(*_under(*_ENTERPRISE, name="load_vae"), "/v3/load_vae"),
        handle=loading.load_vae,
        scope=Scope.MODELS_WRITE,
        schema=loading.LOAD_VAE_SCHEMA,
        coded=True,
    )


def _uploads() -> Iterator[Endpoint]:
    links = ("/v6/base64_to_url", *_under(*_EDITING, name="base64_to_url"))
    rows: tuple[tuple[str, str, Handle, dict[str, Any], tuple[str, ...]], ...] = (
        ("base64_to_url", "A link to an image, for 24 hours.", uploads.link, uploads.LINK_SCHEMA, links),
        ("base64_crop", "A link to an image, cropped.", uploads.crop, uploads.CROP_SCHEMA, ("/v3/base64_crop",)),
        (
            "nsfw_image_check",
            "Whether the safety checker flags an image.",
            uploads.check_nsfw,
            uploads.CHECK_SCHEMA,
            ("/v3/nsfw_image_check", *_under(*_ENTERPRISE, name="nsfw_image_check")),
        ),
        (
            "upload_image",
            "A link to an image, for 24 hours.",
            uploads.upload,
            uploads.UPLOAD_SCHEMA,
            _under(*_ENTERPRISE, name="upload_image"),
        ),
        (
            "delete_image",
            "Deletes the images of a request.",
            uploads.delete,
            uploads.DELETE_SCHEMA,
            ("/v3/delete_image",),
        ),
    )
    for name, summary, handle, schema, paths in rows:
        yield Endpoint(name=name, summary=summary, paths=paths, handle=handle, schema=schema)


def _discovery() -> Iterator[Endpoint]:
    searches = ("/v6/model-search", "/v7/models")
    rows: tuple[tuple[str, str, Handle, tuple[str, ...]], ...] = (
        ("model_list", "The models that draw.", models.model_list, _under(*_DREAMBOOTH, name="model_list")),
        ("finetune_list", "Nothing is trained here.", models.finetune_list, ("/v3/finetune_list",)),
        ("model search", "Models and LoRAs, by search, model_type, tags …", models.search, searches),
        ("model search: filters", "What filters can be.", models.filters, _under(*searches, name="filters")),
        ("model search: tags", "What tags there are.", models.tags, _under(*searches, name="tags")),
        ("model search: providers", "Whose models they are.", models.providers, _under(*searches, name="providers")),
        ("model search: one", "One model or LoRA.", models.show, _under(*searches, name="{model_id:path}")),
    )
    for name, summary, handle, paths in rows:
        yield Endpoint(name=name, summary=summary, paths=paths, handle=handle, methods=("GET", "POST"), scope=None)


def _enterprise() -> Iterator[Endpoint]:
    rows: tuple[tuple[str, str, Handle, tuple[str, ...]], ...] = (
        ("system_details", "What waits, and how many models there are.", enterprise.system_details, ()),
        ("restart_server", "Answers; restarts nothing.", enterprise.restart_server, ()),
        ("update_server", "Answers; updates nothing.", enterprise.update_server, ("update",)),
        ("clear_cache", "Nothing is cached that could be out of date.", enterprise.clear_cache, ()),
        ("clear_queue", "Ends all jobs that wait as errors.", enterprise.clear_queue, ()),
        ("schedulers_list", "Names of schedulers.", enterprise.schedulers_list, ()),
        ("get_all_models", "All models that draw.", enterprise.get_all_models, ()),
        ("sync_models", "Counts the models: they are found without it.", enterprise.sync_models, ()),
        ("verify_model", "Whether a model is offered.", enterprise.verify_model, ()),
        ("delete_model", "Deletes a model of the data folder.", loading.delete_model, ()),
        ("update_s3", "Not available.", partial(refuse, name="update_s3"), ()),
        ("reset_s3", "Not available.", partial(refuse, name="reset_s3"), ()),
    )
    for name, summary, handle, aliases in rows:
        paths = tuple(path for word in (name, *aliases) for path in _under(*_ENTERPRISE, name=word))
        schema = MODEL_SCHEMA if name in ("verify_model", "delete_model") else {}
        yield Endpoint(
            name=f"enterprise: {name}",
            summary=f"{summary} Needs the scope admin.",
            paths=paths,
            handle=handle,
            scope=Scope.ADMIN,
            schema=schema,
        )


def _fetches() -> Iterator[Endpoint]:
    places = ("/v6/images", "/v6/realtime", "/v6/image_editing", "/v7/images", "/v3", "/v1/image_editing")
    paths = _under(*dict.fromkeys((*places, *_COMMUNITY)), name="fetch")
    yield Endpoint(
        name="fetch",
        summary="The result of an earlier call, by request_id in the body; wait holds the answer for up to 10 s.",
        paths=paths,
        handle=fetch,
        answer=DRAWN,
        schema={"type": "object", "required": ["request_id"], "properties": {"request_id": {"type": "string"}}},
    )
    yield Endpoint(
        name="fetch by path",
        summary="The result of an earlier call, by id in the path.",
        paths=tuple(f"{path}/{{request_id}}" for path in paths),
        handle=fetch,
        answer=DRAWN,
        methods=("POST", "GET"),
    )


def _refusals() -> Iterator[Endpoint]:
    edits = {
        "removebg_mask": ("removebg_mask", "removebg"),
        "mask_creator": ("mask_creator", "create_mask"),
        "qwen_edit": ("qwen_edit",),
    }
    for name, words in edits.items():
        paths = tuple(path for word in words for path in _under(*_EDITING, name=word))
        yield Endpoint(name=name, summary="Not available.", paths=paths, handle=partial(refuse, name=name))
    others = {
        "controlnet": ("/v6/images/controlnet", "/v5/controlnet", *_under(*_COMMUNITY[1:], name="controlnet")),
    }
    for name, paths in others.items():
        yield Endpoint(name=name, summary="Not available.", paths=paths, handle=partial(refuse, name=name))


#: In the order in which paths are matched.
ENDPOINTS: tuple[Endpoint, ...] = (
    *_draws(),
    *_upscales(),
    *_others(),
    *_account(),
    *_loading(),
    *_uploads(),
    *_discovery(),
    *_enterprise(),
    *_fetches(),
    *_refusals(),
)
