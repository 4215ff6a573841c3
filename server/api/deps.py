"""Who calls, and how the caller addressed us."""

from __future__ import annotations

import re

from fastapi import Request

from pipelines.errors import InvalidRequest
from server.errors import Forbidden, InvalidKey, MissingKey, RefusedAddress
from server.keys import ApiKey, KeyStore, Scope
from server.net import Guard

#: What may stand in a Host header; anything else could smuggle text into the URLs of answers.
_HOST = re.compile(r"[A-Za-z0-9._-]+(:\d{1,5})?|\[[0-9A-Fa-f:.]+\](:\d{1,5})?")
#: Some clients put a colon behind the scheme's name.
_BEARER = re.compile(r"bearer(?:\s*:\s*|\s+)(.*)", re.IGNORECASE)


def offered_key(request: Request, body_key: object = None) -> str | None:
    """The first key that is not empty: body, ``key`` header, ``Authorization: Bearer``, ``X-API-Key``, query."""
    bearer = _BEARER.match(request.headers.get("authorization", ""))
    offers = (
        str(body_key) if isinstance(body_key, str | int) else "",
        request.headers.get("key", ""),
        bearer[1] if bearer else "",
        request.headers.get("x-api-key", ""),
        request.query_params.get("key", ""),
    )
    return next((offer.strip() for offer in offers if offer.strip()), None)


async def authenticate(keys: KeyStore, key: str | None, *, scope: Scope | None = Scope.GENERATE) -> ApiKey:
    """The caller. Raises ``MissingKey``, ``InvalidKey`` or ``Forbidden``; no scope means that any key will do."""
    if key is None:
        raise MissingKey
    caller = await keys.authenticate(key)
    if caller is None:
        raise InvalidKey
    if scope is not None and scope not in caller.scopes:
        raise Forbidden(f"This API key lacks the scope {scope.value}.")
    return caller


def base_url(request: Request, public_url: str | None) -> str:
    """Absolute, without a trailing slash: as configured, else as the caller addressed us.

    ``X-Forwarded-Host`` is not believed: anyone can send it. Behind a proxy, configure the public URL.
    """
    if public_url is not None:
        return public_url
    host = request.headers.get("host", "")
    if not _HOST.fullmatch(host):
        name, port = request.scope.get("server") or ("localhost", None)
        host = f"[{name}]" if ":" in name else name
        host = host if port is None else f"{host}:{port}"
    return f"{request.scope['scheme']}://{host}"


def check_webhook(guard: Guard, url: str | None) -> None:
    """Raises ``InvalidRequest`` for a URL that will not be told."""
    if url is None:
        return
    try:
        guard.check_url(url)
    except RefusedAddress as error:
        raise InvalidRequest(f"webhook: {error}", field="webhook") from None
