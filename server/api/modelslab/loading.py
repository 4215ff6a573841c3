"""Models brought to the device before they are drawn with, and weights brought to the server."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from pipelines.auxiliary import AuxiliaryKind
from pipelines.errors import InvalidRequest
from server.api.deps import check_webhook
from server.api.modelslab.model_ids import MODEL_SCHEMA, read_model_id
from server.api.modelslab.visit import Visit
from server.errors import RefusedAddress
from server.shelf import Addition

_LIMIT = 4_096
_SUFFIX = ".safetensors"
#: What ``model_category`` says of a model -> family.
_FAMILIES: Mapping[str, str] = MappingProxyType(
    {"stable_diffusion": "sd15", "stable_diffusion_xl": "sdxl", "flux": "flux"}
)
#: What it, ``model_subcategory`` or ``model_type`` say of what is no model.
_KINDS: Mapping[str, AuxiliaryKind] = MappingProxyType(
    {
        "lora": AuxiliaryKind.LORA,
        "embedding": AuxiliaryKind.EMBEDDING,
        "embeddings": AuxiliaryKind.EMBEDDING,
        "textual_inversion": AuxiliaryKind.EMBEDDING,
        "vae": AuxiliaryKind.VAE,
    }
)
#: Ways to name the two formats.
_FORMATS: Mapping[str, str] = MappingProxyType(
    {"safetensors": "safetensors", "diffusers": "diffusers", "huggingface": "diffusers"}
)
_PICKLED = frozenset({"ckpt", "pt", "pth", "bin", "custom_ckpt", "api_trained"})
#: A repository on the hub, as a page or as its name.
_HUB = re.compile(r"(?:https?://huggingface\.co/)?([\w.-]+/[\w.-]+?)/?")

_TEXT = {"type": "string"}
#: Bodies of the two calls.
LOAD_MODEL_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["url", "model_id"],
    "properties": {
        **MODEL_SCHEMA["properties"],
        "url": {"type": "string", "description": "A safetensors file; for diffusers owner/name on the hub."},
        "model_format": {"type": "string", "enum": ["safetensors", "diffusers"]},
        "model_category": {"type": "string", "enum": [*_FAMILIES, "lora"], "default": "stable_diffusion"},
        "model_subcategory": {"type": "string", "enum": [*_KINDS]},
        "webhook": _TEXT,
    },
}
LOAD_VAE_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["vae_url", "vae_id"],
    "properties": {
        "vae_id": _TEXT,
        "vae_url": {"type": "string", "description": "A safetensors file; for diffusers owner/name on the hub."},
        "vae_type": {"type": "string", "enum": ["safetensors", "diffusers"]},
    },
}


async def reload(visit: Visit) -> dict[str, Any]:
    """Loads a model: ``success`` when it is there, ``processing`` when that takes longer than a call may."""
    model = visit.context.catalog.resolve(read_model_id(visit)).model.id
    loaded = await visit.context.preloads.load(model, visit.context.sync_wait_s)
    text = "model loaded" if loaded else "model load started"
    status = "success" if loaded else "processing"
    return {"status": status, "message": text, "messege": text, "model_id": model}


async def load_model(visit: Visit) -> dict[str, Any]:
    """Begins to fetch a model or a LoRA, which is offered once it is whole; the webhook is told then."""
    url, name = _read(visit, "url"), read_model_id(visit)
    kind = _read_kind(visit)
    is_hub = _read_format(visit, url, "model_format", "model_type") == "diffusers"
    if is_hub and kind is not None:
        raise InvalidRequest(f"A {kind.value.rstrip('s')} must be a safetensors file", field="model_format")
    addition = Addition(
        name=name,
        url=None if is_hub else url,
        hub=_hub_name(url, "url") if is_hub else None,
        kind=kind,
        family=None if kind else _read_family(visit),
    )
    return _begin(visit, addition, "model load started")


async def load_vae(visit: Visit) -> dict[str, Any]:
    """Begins to fetch a VAE; see ``load_model``."""
    url, name = _read(visit, "vae_url", "url"), _read(visit, "vae_id", "model_id")
    is_hub = _read_format(visit, url, "vae_type", "model_format") == "diffusers"
    addition = Addition(
        name=name,
        url=None if is_hub else url,
        hub=_hub_name(url, "vae_url") if is_hub else None,
        kind=AuxiliaryKind.VAE,
    )
    return _begin(visit, addition, "VAE load started")


async def delete_model(visit: Visit) -> dict[str, Any]:
    """Deletes a model of the data folder, with its weights."""
    await visit.context.shelf.remove(read_model_id(visit))
    text = "Model deleted on server"
    return {"status": "success", "message": text, "messege": text}


def _begin(visit: Visit, addition: Addition, text: str) -> dict[str, Any]:
    webhook = visit.fields.choice("webhook", limit=_LIMIT)
    check_webhook(visit.context.guard, webhook)
    try:
        visit.context.shelf.add(replace(addition, webhook=webhook))
    except RefusedAddress as error:
        raise InvalidRequest(f"url: {error}", field="url") from None
    return {"status": "success", "message": text, "messege": text, "model_id": addition.name}


def _read(visit: Visit, *names: str) -> str:
    value = visit.fields.text(*names, limit=_LIMIT)
    if value is None:
        raise InvalidRequest(f"{names[0]} is required", field=names[0])
    return value.strip()


def _read_kind(visit: Visit) -> AuxiliaryKind | None:
    for name in ("model_subcategory", "model_category", "model_type"):
        word = (visit.fields.choice(name, limit=_LIMIT) or "").strip().lower()
        if word == "controlnet":
            raise InvalidRequest("controlnet is not available on this server", field=name)
        if word in _KINDS:
            return _KINDS[word]
    return None


def _read_family(visit: Visit) -> str:
    word = (visit.fields.choice("model_category", limit=_LIMIT) or "stable_diffusion").strip().lower()
    if word not in _FAMILIES:
        raise InvalidRequest(f"model_category must be {', '.join(_FAMILIES)} or lora", field="model_category")
    return _FAMILIES[word]


def _read_format(visit: Visit, url: str, *names: str) -> str:
    """``safetensors`` or ``diffusers``; where nothing is said, by what the URL looks like."""
    if visit.fields.flag("from_safetensors"):
        return "safetensors"
    for name in names:
        word = (visit.fields.choice(name, limit=_LIMIT) or "").strip().lower()
        if word in _FORMATS:
            return _FORMATS[word]
        # model_type says other things, too.
        if word in _PICKLED or (word and word not in _KINDS and name != "model_type"):
            reason = "other formats can run code when they are opened"
            raise InvalidRequest(f"{name} must be safetensors or diffusers: {reason}", field=name)
    return "diffusers" if _HUB.fullmatch(url) and not url.endswith(_SUFFIX) else "safetensors"


def _hub_name(url: str, field: str) -> str:
    found = _HUB.fullmatch(url)
    if found is None:
        raise InvalidRequest(f"{field} must be owner/name on the hub for diffusers", field=field)
    return found[1]
