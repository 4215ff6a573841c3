"""Job ids: random, safe in JavaScript, hard to guess."""

from __future__ import annotations

import secrets

#: Ids are below this; with a million live jobs a guess hits one in 4.5 billion times.
LIMIT = 2**52


def new_id() -> int:
    """1 .. 2**52 - 1."""
    return secrets.randbelow(LIMIT - 1) + 1


def parse_id(value: object) -> int:
    """A job id, however a client spells it; 0, which no job has, for anything else."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = str(value).strip() if isinstance(value, int | str) and not isinstance(value, bool) else ""
    if not (text.isascii() and text.isdigit() and len(text) <= 16):
        return 0
    number = int(text)
    return number if number < LIMIT else 0
