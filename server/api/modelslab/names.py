"""Lists of names of auxiliary weights, as clients send them."""

from __future__ import annotations

from pipelines.errors import InvalidRequest
from server.api.modelslab.coerce import Fields, as_flag

_LIMIT = 200
_MAX_EMBEDDINGS = 16
#: Ways to name nothing.
NOTHING = frozenset({"null", "none", "undefined"})


def read_names(fields: Fields, *wire: str) -> list[str]:
    """The parts of a list in order, "" for what names nothing. Raises ``InvalidRequest``."""
    return [_name(part, wire[0]) for part in fields.listed(*wire)]


def read_embeddings(fields: Fields) -> tuple[str, ...]:
    """Names of textual inversions. Raises ``InvalidRequest``."""
    field = "embeddings_model"
    names = tuple(name for name in read_names(fields, field, "embeddings") if name)
    if len(names) > _MAX_EMBEDDINGS:
        raise InvalidRequest(f"{field} must name at most {_MAX_EMBEDDINGS} embeddings", field=field)
    return names


def _name(part: object, field: str) -> str:
    if part is None or as_flag(part) is False or (isinstance(part, str) and part.lower() in NOTHING):
        return ""
    if not isinstance(part, str) or len(part) > _LIMIT:
        raise InvalidRequest(f"{field} must be names of at most {_LIMIT} characters", field=field)
    return part
