"""Pictures that clients leave here to be linked to, and pictures that they take away."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import InvalidRequest
from server.api.modelslab.unavailable import refuse
from server.api.modelslab.visit import Visit
from server.errors import NotFound
from server.inputs import BadInput, UnfetchableInput, is_url
from server.jobs.base import JobState
from server.jobs.ids import new_id
from server.storage.formats import Encoding, encode
from server.storage.names import new_name, url_path

#: Bytes of a picture, as documented.
_LARGEST = 5 * 1024 * 1024
_DATA = {"type": "string", "description": "PNG, JPEG or WebP as base64 or data URI, at most 5 MiB."}

#: Bodies of the ways to upload.
LINK_SCHEMA = {"type": "object", "properties": {"init_image": _DATA, "base64_string": _DATA}}
CROP_SCHEMA = {"type": "object", "required": ["image"], "properties": {"image": _DATA, "crop": {"type": "string"}}}
UPLOAD_SCHEMA = {"type": "object", "required": ["base64_image"], "properties": {"base64_image": _DATA}}
CHECK_SCHEMA = {"type": "object", "required": ["init_image"], "properties": {"init_image": {"type": "string"}}}
#: Body of ``delete_image``.
DELETE_SCHEMA = {"type": "object", "required": ["request_id"], "properties": {"request_id": {"type": "integer"}}}


async def link(visit: Visit) -> dict[str, Any]:
    """A URL of a picture given as base64, good for 24 hours."""
    url = await _keep(visit, await _read(visit, "init_image", "base64_string", "base64_image", "image"))
    return {"status": "success", "id": new_id(), "output": [url], "proxy_links": [url]}


async def crop(visit: Visit) -> dict[str, Any]:
    """As ``link``; with ``crop`` the largest square from the middle."""
    pixels = await _read(visit, "image", "init_image")
    if visit.fields.flag("crop"):
        pixels = middle_square(pixels)
    text = "image uploaded"
    url = await _keep(visit, pixels)
    return {"status": "success", "message": text, "messege": text, "link": url, "request_id": new_id()}


async def upload(visit: Visit) -> dict[str, Any]:
    """As ``link``, in the words of dedicated servers."""
    text = "image uploaded"
    url = await _keep(visit, await _read(visit, "base64_image", "init_image", "image"))
    return {"status": "success", "message": text, "messege": text, "image_url": url}


async def delete(visit: Visit) -> dict[str, Any]:
    """Deletes the pictures of a finished request; fetching it then says so. Raises ``NotFound``, ``InvalidRequest``."""
    request_id = visit.fields.raw("request_id", "id")
    if request_id is None:
        raise InvalidRequest("request_id is required", field="request_id")
    job = await visit.context.service.get(request_id, visit.caller.id)
    if job is None or not job.outputs:
        raise NotFound("Request not found")
    if not job.state.terminal:
        raise InvalidRequest("The request is not finished yet", field="request_id")
    if job.state is JobState.SUCCEEDED:
        # First, so that nobody is told of links that lead nowhere.
        await visit.context.jobs.expire(job.id, message="The images were deleted.")
    # Also of a job that was told to be gone: the server may have been killed at this very place.
    await asyncio.gather(*(visit.context.images.delete(name) for name in job.outputs))
    return {"status": "success", "message": "image deleted", "messege": "image deleted"}


async def check_nsfw(visit: Visit) -> dict[str, Any]:
    """Whether the safety checker flags a picture, and a link to it for 24 hours; no ``status``, as documented."""
    if visit.context.catalog.checker() is None:
        await refuse(visit, name="nsfw_image_check")
    pixels = await _read(visit, "init_image", "image", by_url=True)
    flagged = await visit.context.inspect(pixels)
    answer: dict[str, Any] = {"images": await _keep(visit, pixels), "has_nsfw_concept": [flagged]}
    # The checker's concepts have thresholds of their own.
    given = visit.fields.number("threshold")
    return answer if given in (None, 0.5) else answer | {"warning": "Not applied: threshold."}


def middle_square(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The largest square in the middle of (height, width, 3)."""
    height, width = pixels.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return pixels[top : top + side, left : left + side]


async def _read(visit: Visit, *names: str, by_url: bool = False) -> NDArray[np.uint8]:
    source = visit.fields.picture(*names)
    if source is None:
        raise InvalidRequest(f"{names[0]} is required", field=names[0])
    if is_url(source) and not by_url:
        raise InvalidRequest(f"{names[0]} must be base64, not a URL", field=names[0])
    if len(source) * 3 // 4 > _LARGEST:
        raise InvalidRequest(f"{names[0]} is larger than {_LARGEST // 2**20} MiB", field=names[0])
    try:
        stored = await visit.context.inputs.store(source, "image")
    except UnfetchableInput as error:
        raise InvalidRequest(str(error), field=names[0]) from error
    except BadInput as error:
        raise InvalidRequest(f"{names[0]}: {error}", field=names[0]) from None
    return await asyncio.to_thread(visit.context.inputs.read, stored.digest)


async def _keep(visit: Visit, pixels: NDArray[np.uint8]) -> str:
    name = new_name(0, temporary=True)
    await visit.context.images.put(name, await asyncio.to_thread(encode, pixels, Encoding()))
    return visit.base_url + url_path(name)
