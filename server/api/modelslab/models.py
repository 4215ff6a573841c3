"""Which models and LoRAs there are, in the shapes that clients list them in."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pipelines.auxiliary import AuxiliaryKind
from pipelines.errors import UnknownModel
from pipelines.model import ModelSpec
from server.api.modelslab.coerce import Fields
from server.api.modelslab.visit import Visit
from server.catalog.auxiliaries import Auxiliary

_PAGE, _LARGEST_PAGE = 20, 100
_LAST_PAGE = 100_000
_TEXT_LIMIT = 1_000
#: Family -> what the API calls it.
_CATEGORIES: Mapping[str, str] = MappingProxyType(
    {"sd15": "stable_diffusion", "sdxl": "stable_diffusion_xl", "flux": "flux"}
)
#: What a search may ask for, in these words; a value matches whatever its case.
_FILTERS = ("feature", "model_type", "model_category", "model_subcategory", "base_model", "provider")
#: What each item shows in a list of ``dreambooth`` models, and nothing more.
_LISTED = ("model_id", "status", "created_at", "instance_prompt", "model_name", "description", "screenshots")


async def model_list(visit: Visit) -> list[object]:
    """A bare array of the models that draw."""
    items = await asyncio.to_thread(lambda: list(_models(visit)))
    return [{name: item[name] for name in _LISTED} for item in items]


async def finetune_list(visit: Visit) -> dict[str, Any]:
    """Nothing is trained here."""
    return {"status": "success", "message": "model list", "messege": "model list", "data": []}


async def search(visit: Visit) -> dict[str, Any]:
    """Models and LoRAs, filtered and in pages; ``model_subcategory=lora`` lists the LoRAs alone."""
    items = _sorted([item for item in await _all(visit) if _matches(item, visit.fields)], visit.fields)
    per_page = min(max(visit.fields.integer("per_page") or _PAGE, 1), _LARGEST_PAGE)
    page = min(max(visit.fields.integer("page") or 1, 1), _LAST_PAGE)
    last = max(-(-len(items) // per_page), 1)
    meta = {"total": len(items), "per_page": per_page, "current_page": page, "last_page": last}
    found = items[(page - 1) * per_page : page * per_page]
    return {"status": "success", "data": found, "meta": meta, "pagination": meta}


async def show(visit: Visit) -> dict[str, Any]:
    """One model or LoRA. Raises ``UnknownModel``."""
    name = visit.path["model_id"].strip().lower()
    for item in await _all(visit):
        if name in (item["model_id"].lower(), *(alias.lower() for alias in item["aliases"])):
            return {"status": "success", "data": item}
    raise UnknownModel(visit.path["model_id"])


async def filters(visit: Visit) -> dict[str, Any]:
    """What each filter of ``search`` can be."""
    items = await _all(visit)
    return {"status": "success", "data": {name: _values(items, name) for name in _FILTERS}}


async def tags(visit: Visit) -> dict[str, Any]:
    """All words by which ``search`` knows models."""
    words = sorted({tag for item in await _all(visit) for tag in item["tags"]})
    return {"status": "success", "data": words}


async def providers(visit: Visit) -> dict[str, Any]:
    """Whose models they are."""
    return {"status": "success", "data": _values(await _all(visit), "provider")}


async def _all(visit: Visit) -> list[dict[str, Any]]:
    # Files are looked at, which may take a slow disk's time.
    return await asyncio.to_thread(lambda: [*_models(visit), *_loras(visit)])


def _models(visit: Visit) -> Iterable[dict[str, Any]]:
    catalog = visit.context.catalog
    for model in catalog.models():
        if model.family in _CATEGORIES:
            configured = catalog.configured.get(model.id)
            hub = configured.source.hub if configured and configured.source else ""
            yield _model_item(model, hub.partition("/")[0] or "local")


def _loras(visit: Visit) -> Iterable[dict[str, Any]]:
    return [_lora_item(lora) for lora in visit.context.auxiliaries.of(AuxiliaryKind.LORA)]


def _model_item(model: ModelSpec, provider: str) -> dict[str, Any]:
    tasks = sorted(model.tasks)
    return {
        **_item(model.id, model.family, _date(model.file or model.folder)),
        "aliases": list(model.aliases),
        "description": model.note or "",
        "model_type": "text_to_image" if "text2img" in tasks else "image_editing",
        "model_subcategory": "checkpoint",
        "provider": provider,
        "tags": [model.family, *tasks],
    }


def _lora_item(lora: Auxiliary) -> dict[str, Any]:
    changed = datetime.fromtimestamp(lora.modified, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        **_item(lora.name, lora.family or "", changed),
        "instance_prompt": ", ".join(lora.triggers),
        "aliases": [],
        "description": "",
        "model_type": "lora",
        "model_subcategory": "lora",
        "provider": "local",
        "tags": [word for word in ("lora", lora.family) if word],
    }


def _item(name: str, family: str, created_at: str | None) -> dict[str, Any]:
    return {
        "model_id": name,
        "model_name": name,
        "name": name,
        "status": "model_ready",
        "created_at": created_at,
        "instance_prompt": "",
        "screenshots": "",
        "feature": "imagen",
        "model_category": _CATEGORIES.get(family, family),
        "base_model": family,
    }


def _date(path: Path) -> str | None:
    """When weights came; None for a stand-in that was not made yet."""
    try:
        return datetime.fromtimestamp(path.stat().st_mtime, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except OSError:
        return None


def _matches(item: Mapping[str, Any], fields: Fields) -> bool:
    for name in _FILTERS:
        wanted = fields.text(name, limit=_TEXT_LIMIT)
        # A family goes by our name and by the API's.
        values = (item["base_model"], item["model_category"]) if name == "base_model" else (item[name],)
        if wanted is not None and wanted.strip().lower() not in values:
            return False
    words = {str(part).lower() for part in fields.listed("tags")}
    if words and not words & set(item["tags"]):
        return False
    text = (fields.text("search", limit=_TEXT_LIMIT) or "").strip().lower()
    return any(text in str(item[name]).lower() for name in ("model_id", "aliases", "description", "instance_prompt"))


def _sorted(items: list[dict[str, Any]], fields: Fields) -> list[dict[str, Any]]:
    """By name; by date, newest first, for whatever else is asked."""
    if (fields.text("sort", limit=_TEXT_LIMIT) or "name") in ("name", "model_id", "model_name"):
        return sorted(items, key=lambda item: str(item["model_id"]).lower())
    return sorted(items, key=lambda item: item["created_at"] or "", reverse=True)


def _values(items: Iterable[Mapping[str, Any]], name: str) -> list[str]:
    return sorted({item[name] for item in items if item[name]})
