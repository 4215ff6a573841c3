"""One call whose caller is known: what every endpoint works with."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from fastapi.responses import Response

from server.api.dialect import Context
from server.api.modelslab.coerce import Fields
from server.api.modelslab.schemas import Options
from server.keys import ApiKey

NAME = "modelslab"


@dataclass(frozen=True, kw_only=True)
class Visit:
    """A call, read and admitted."""

    context: Context
    options: Options
    fields: Fields
    caller: ApiKey
    #: Base of the URLs in the answer.
    base_url: str
    #: What stood in the path's placeholders.
    path: Mapping[str, str]


#: An endpoint: raises what its dialect renders, answers a response or a JSON value.
Handle = Callable[[Visit], Awaitable[Response | dict[str, object] | list[object]]]
