"""``lora_model`` and ``lora_strength``: two lists that belong together, as clients send them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipelines.errors import InvalidRequest
from server.api.modelslab.coerce import Fields, as_number
from server.api.modelslab.names import NOTHING, read_names

_MODELS = ("lora_model", "lora")
_STRENGTHS = "lora_strength"
_MAX_LORAS = 16


def read_loras(fields: Fields) -> tuple[tuple[str, float], ...]:
    """(name, strength) in order: one strength holds for all, missing ones are 1. Raises ``InvalidRequest``."""
    names = read_names(fields, *_MODELS)
    given = [_strength(part) for part in fields.listed(_STRENGTHS)] if any(names) else []
    strengths = given * len(names) if len(given) == 1 else [*given, *[1.0] * len(names)]
    found = tuple((name, strength) for name, strength in zip(names, strengths, strict=False) if name)
    if len(found) > _MAX_LORAS:
        raise InvalidRequest(f"lora_model must name at most {_MAX_LORAS} LoRAs", field="lora_model")
    return found


def _strength(part: object) -> float:
    if part is None or part == "" or (isinstance(part, str) and part.lower() in NOTHING):
        return 1.0
    number = as_number(part)
    if number is None:
        raise InvalidRequest("lora_strength must be numbers with commas between them", field=_STRENGTHS)
    # 64 bits and more are no strength; what is left is clamped by rule.
    return float(max(min(number, 2**63), -(2**63)))


def surplus_strengths(fields: Fields, count: int) -> list[str]:
    """What of ``lora_strength`` has no LoRA; a 1 asks for nothing."""
    given = fields.listed(_STRENGTHS)
    if not count:
        neutral = all(part == "" or as_number(part) == 1 for part in given)
        return [] if neutral else [_STRENGTHS]
    named = len(fields.listed(*_MODELS))
    return [f"{_STRENGTHS} after the last LoRA"] if len(given) > max(named, 1) else []


def used_loras(loras: Sequence[Sequence[Any]]) -> dict[str, Any]:
    """What ``meta`` says: lists as clients send them, one strength as a number."""
    strengths = [f"{strength:g}" for _, strength in loras]
    shown: Any = ",".join(strengths) if len(loras) > 1 else loras[0][1] if loras else 1
    return {"lora": ",".join(name for name, _ in loras) or None, "lora_strength": shown}
