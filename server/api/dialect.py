"""The contract of a dialect: one public API, its routes, and its own words for answers and errors."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import Protocol, cast

import numpy as np
import orjson
from fastapi import APIRouter
from fastapi.responses import Response
from numpy.typing import NDArray

from pipelines.complete import complete
from pipelines.draft import Completed, Defaults, ImageDraft, SafetyRules
from pipelines.errors import Error
from pipelines.model import ModelSpec
from pipelines.styles import PromptStyles
from server.api import DIALECTS
from server.catalog import Catalog
from server.catalog.auxiliaries import Auxiliaries
from server.errors import QueueFull
from server.inputs import Inputs
from server.jobs.base import Job, JobStore
from server.keys import KeyStore
from server.net import Guard
from server.preloads import Preloads
from server.service import Service
from server.shelf import Shelf
from server.storage.base import ImageStore

#: HTTP status by error code; a code that is not here is our fault.
STATUS: dict[str, int] = {
    "invalid_request": 400,
    "bad_body": 400,
    "refused_address": 400,
    "unknown_model": 400,
    "cancelled": 400,
    "input_gone": 404,
    "missing_key": 401,
    "invalid_key": 401,
    "forbidden": 403,
    "not_found": 404,
    "expired": 404,
    "method_not_allowed": 405,
    "body_too_large": 413,
    "queue_full": 429,
    "unavailable": 503,
    "cleared": 503,
}


class MethodNotAllowed(Error):
    """The path exists, but not for this method."""

    code = "method_not_allowed"

    def __init__(self, allow: str) -> None:
        super().__init__("Method not allowed")
        #: Value of the ``Allow`` header.
        self.allow = allow


@dataclass(frozen=True, kw_only=True)
class Context:
    """What every dialect works with."""

    service: Service
    #: Stored jobs, to be read.
    jobs: JobStore
    catalog: Catalog
    #: The operator's weights beside the models, as they are at this moment.
    auxiliaries: Auxiliaries
    keys: KeyStore
    #: Loads models ahead.
    preloads: Preloads
    #: ``Executor.inspect``: whether the safety checker flags a picture.
    inspect: Callable[[NDArray[np.uint8]], Awaitable[bool]]
    #: Weights that clients bring and take away.
    shelf: Shelf
    #: Checks URLs that clients give.
    guard: Guard
    #: Keeps the pictures that clients send.
    inputs: Inputs
    #: Finished pictures, to be read.
    images: ImageStore
    #: Base of the URLs in answers; None = as the caller addressed the server.
    public_url: str | None = None
    #: Seconds a submitting call waits for its pictures.
    sync_wait_s: float = 15.0
    #: Every picture bit-equal, unless the request says otherwise.
    reproducible: bool = False
    #: What the settings say about the safety checker.
    safety: SafetyRules = field(default_factory=SafetyRules)
    #: What can be put around prompts, as it is at this moment.
    styles: Callable[[], PromptStyles] = PromptStyles

    def complete(self, draft: ImageDraft, model: ModelSpec, fallback: Defaults) -> Completed:
        """As ``pipelines.complete.complete``, on this server."""
        return complete(
            draft,
            model,
            fallback,
            reproducible=self.reproducible,
            safety=self.safety_rules(),
            find_auxiliary=self.auxiliaries.find,
            styles=self.styles(),
        )

    def safety_rules(self) -> SafetyRules:
        """What holds at this moment: the checker's weights come and go."""
        return replace(self.safety, available=self.catalog.checker() is not None)


class Dialect(Protocol):
    """One public API. Constructed with its section of the settings as keyword arguments."""

    @property
    def name(self) -> str:
        """Its key in ``DIALECTS``, stored with each job."""

    @property
    def prefixes(self) -> Sequence[str]:
        """Beginnings of the paths it owns; errors under them leave in its shape. The longest match wins."""

    def router(self, context: Context) -> APIRouter:
        """Its routes."""

    def render_error(self, error: Error) -> Response:
        """The error in its own shape; ``str(error)`` may be shown."""

    def webhook_body(self, job: Job) -> bytes:
        """What a terminal job's webhook receives, as JSON."""


def load_dialects(sections: Mapping[str, Mapping[str, object]]) -> dict[str, Dialect]:
    """All dialects by name, in the order of the table; ``sections`` are their settings, by name."""
    dialects: dict[str, Dialect] = {}
    for name, target in DIALECTS.items():
        module, _, attribute = target.partition(":")
        dialects[name] = cast(Dialect, getattr(import_module(module), attribute)(**sections.get(name, {})))
    return dialects


class JSONBytes(Response):
    """A body that orjson makes."""

    media_type = "application/json"

    def render(self, content: object) -> bytes:
        return orjson.dumps(content)


def status_of(error: Error) -> int:
    """The HTTP status that a dialect without its own rules answers."""
    return STATUS.get(error.code, 500)


def extra_headers(error: Error) -> dict[str, str]:
    """What HTTP itself asks for beside the status, in any dialect."""
    if isinstance(error, QueueFull):
        return {"Retry-After": str(error.retry_after_s)}
    if isinstance(error, MethodNotAllowed):
        return {"Allow": error.allow}
    return {}


def render_plain(error: Error) -> Response:
    """The shape of errors on paths that no dialect owns."""
    body = {"error": {"code": error.code, "message": str(error)}}
    return JSONBytes(body, status_code=status_of(error), headers=extra_headers(error))
