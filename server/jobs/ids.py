"""Job ids: random, safe in JavaScript, hard to guess."""

from __future__ import annotations

import secrets

#: Ids are below this; with a million live jobs a guess hits one in 4.5 billion times.
LIMIT = 2**52


def new_id() -> int:
    """1 .. 2**52 - 1."""
    return secrets.randbelow(LIMIT - 1) + 1
