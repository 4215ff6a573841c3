"""What a pull can end with."""

from __future__ import annotations


class PullError(Exception):
    """``str(error)`` is one line for the operator: what is wrong and what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))
