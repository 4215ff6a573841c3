"""``ip_adapter_id``, ``ip_adapter_scale`` and ``ip_adapter_image``: a picture as part of the prompt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pipelines.errors import InvalidRequest
from pipelines.ip_adapter import ADAPTED
from pipelines.request import ImageRequest
from server.api.modelslab.schemas import ADAPTER_IMAGE, Call


def fit_adapter(call: Call, family: str) -> Call:
    """The call with pictures of use to a model of the family: none is fetched for nothing.

    Raises ``InvalidRequest`` for an adapter without a picture and for a picture without an adapter.
    """
    name, pictured = call.draft.ip_adapter, ADAPTER_IMAGE in call.pictures
    if family in ADAPTED:
        if pictured and name is None:
            raise InvalidRequest("ip_adapter_id is required", field="ip_adapter_id")
        if name is not None and not pictured:
            raise InvalidRequest(f"{ADAPTER_IMAGE} is required", field=ADAPTER_IMAGE)
        return call
    pictures = {key: source for key, source in call.pictures.items() if key != ADAPTER_IMAGE}
    # An adapter is named in the warning that it gets.
    alone = (ADAPTER_IMAGE,) if pictured and name is None else ()
    return replace(call, pictures=pictures, unapplied=(*call.unapplied, *alone))


def used_adapter(request: Mapping[str, Any]) -> dict[str, Any]:
    """What ``meta`` says beside the picture."""
    return {
        "ip_adapter_id": request.get("ip_adapter"),
        "ip_adapter_scale": request.get("ip_adapter_scale", ImageRequest.ip_adapter_scale),
    }
