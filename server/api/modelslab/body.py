"""The fields of a call, whatever they travelled in; the body wins over the query."""

from __future__ import annotations

from fastapi import Request

from server.api.body import read_body
from server.api.modelslab.coerce import Fields


async def read_fields(request: Request) -> Fields:
    """Reads the call. Raises what ``read_body`` raises."""
    return Fields(await read_body(request), dict(request.query_params))
