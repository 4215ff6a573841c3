"""``upscale``: a yes, or a factor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipelines.upscalers import PREFIX
from server.api.modelslab.coerce import Fields, as_number

#: What yes means; the pages say "upscale 2x".
_YES = 2


def read_upscale(fields: Fields) -> int | None:
    """The factor; 1: not larger, also for no. Raises ``InvalidRequest``."""
    # A number is a factor, not a flag: "1" means no.
    if as_number(fields.raw("upscale")) is not None:
        return fields.integer("upscale")
    flag = fields.flag("upscale")
    return flag if flag is None else _YES if flag else 1


def used_upscale(request: Mapping[str, Any]) -> str:
    """What ``meta`` says of a stored request: the factor; yes where an upscaler does the whole of it."""
    if request["model"].startswith(PREFIX):
        return "yes"
    factor = request.get("upscale", 1)
    return "no" if factor == 1 else str(factor)
