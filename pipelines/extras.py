"""What comes to the device beside a model's weights, because requests asked for it: adapters, encoders, other VAEs."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any, Protocol


class Extra(Protocol):
    """One model's; see ``pipelines.ip_adapters.IpAdapters`` and ``pipelines.vaes.Vaes``."""

    def tensors(self) -> Iterable[Any]:
        """Whatever of it lies on the device, as torch tensors; the same objects from call to call."""

    def release(self) -> None:
        """Forgets what can be read again; rows in flight keep what they need."""


class Extras:
    """All models' together, each for as long as it lives; what several of them hold counts once.

    Counts in the budget as ``server.engine.models.Beside``. The device thread alone uses it.
    """

    def __init__(self) -> None:
        self._extras: weakref.WeakSet[Extra] = weakref.WeakSet()

    def add(self, extra: Extra) -> None:
        """Counts it."""
        self._extras.add(extra)

    def bytes(self) -> int:
        """What all of them take."""
        return sum({id(tensor): tensor.nbytes for one in list(self._extras) for tensor in one.tensors()}.values())

    def release(self) -> None:
        """Forgets all that can be read again."""
        for one in list(self._extras):
            one.release()
