"""Documented endpoints that this server does not have."""

from __future__ import annotations

from typing import NoReturn

from pipelines.errors import InvalidRequest
from server.api.modelslab.visit import Visit


async def refuse(visit: Visit, *, name: str) -> NoReturn:
    """Says so, to callers with a key: what to do instead is for the operator to say, not to retry."""
    raise InvalidRequest(f"{name} is not available on this server")
