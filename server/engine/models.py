"""The models on the device: loaded when first asked for, those unused for longest make room."""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from pipelines.base import Pipeline
from pipelines.errors import ModelTooLarge
from pipelines.upscalers import PREFIX

logger = logging.getLogger(__name__)

#: Seconds before a model that could not be loaded is tried again; sooner when it is made of something else.
RETRY_S = 10.0
#: Bytes that a model's weights will take on the device.
Weigh = Callable[[str], int]


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Bytes of weights that may be on the device; None: any."""

    #: Of all models together.
    together: int | None = None
    #: Of a model that is there alone: it may come nearer to what the device has.
    alone: int | None = None


class Beside(Protocol):
    """What is on the device beside the models and counts in the budget: the safety checker, caches."""

    def bytes(self) -> int:
        """What it takes on the device at the moment."""

    def release(self) -> None:
        """Frees what can be had again, for a model that has no room otherwise."""


@dataclass(frozen=True, kw_only=True)
class _Resident:
    pipeline: Pipeline
    #: Bytes of its weights; 0 where nobody counts.
    weight: int
    stamp: object


class ResidentModels:
    """Loaded pipelines: at most ``limit`` models, and no more bytes of weights than ``budget`` says.

    Upscalers are small, and come behind what other models draw: they take none of the ``limit`` places, or an upscaler
    would wait until nothing is drawn, and then take the place of the model that is needed next.

    ``stamp`` gives what a model is made of: one whose stamp has changed (its weights were pulled while the demo drew)
    is loaded anew as soon as nothing of it is being drawn.
    """

    def __init__(
        self,
        load: Callable[[str], Pipeline],
        *,
        limit: int,
        budget: Callable[[], Budget] = Budget,
        weigh: Weigh = lambda name: 0,
        stamp: Callable[[str], object] = lambda name: None,
        clock: Callable[[], float] = time.monotonic,
        beside: Sequence[Beside] = (),
    ) -> None:
        #: Loads a model by id.
        self.load = load
        self._limit = limit
        self._budget = budget
        self._weigh = weigh
        self._stamp = stamp
        self._resident: OrderedDict[str, _Resident] = OrderedDict()
        self._clock = clock
        self._beside = beside
        #: What could not be loaded: when, made of what, and why.
        self._failed: dict[str, tuple[float, object, Exception]] = {}
        #: Weighed and not yet loaded: while a model waits for room it is asked for at every turn.
        self._weighed: dict[str, int] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """Loaded models, the one used last at the end."""
        return tuple(self._resident)

    @property
    def weight(self) -> int:
        """Bytes of all loaded weights."""
        return sum(one.weight for one in self._resident.values())

    def fits(self, name: str, busy: set[str]) -> bool:
        """The model is loaded, or can be without taking one away that is in use; True also if it never will be."""
        if name in self._resident:
            return True
        try:
            needed = self._needed(name)
        except Exception:
            # A checkpoint that cannot be weighed cannot be loaded; loading says why.
            return True
        kept = {other: one for other, one in self._resident.items() if other in busy}
        return self._has_room(name, kept, sum(one.weight for one in kept.values()), needed)

    def get(self, name: str, busy: set[str]) -> Pipeline:
        """The model; loads it and closes the ones that must go. Raises ``ModelTooLarge`` and what loading raises."""
        found = self._resident.get(name)
        if found is not None and name not in busy and found.stamp != self._stamp(name):
            self._resident.pop(name).pipeline.close()
            logger.info("model %s has changed", name)
            found = None
        if found is None:
            self._raise_known(name)
            needed = self._needed(name)
            # Weighed anew the next time: its files may be others by then.
            del self._weighed[name]
            self._unload_idle(busy, lambda: self._has_room(name, self._resident, self._taken(), needed))
            if not self._is_within(len(self._resident), self._taken() + needed):
                for one in self._beside:
                    one.release()
            began = time.monotonic()
            found = self._resident[name] = self._loaded(name, needed)
            logger.info("model %s loaded in %.2f s, %.2f GB", name, time.monotonic() - began, needed / 1e9)
        self._resident.move_to_end(name)
        return found.pipeline

    def make_room(self, busy: set[str]) -> None:
        """Unloads models that are not in use until what has come beside them fits, too."""
        self._unload_idle(busy, lambda: self._is_within(len(self._resident) - 1, self._taken()))

    def _unload_idle(self, busy: set[str], done: Callable[[], bool]) -> None:
        """Those unused for longest go first."""
        for other in list(self._resident):
            if done():
                return
            if other not in busy:
                self._resident.pop(other).pipeline.close()
                logger.info("model %s unloaded to make room", other)

    def _taken(self) -> int:
        """Bytes of models and of what is beside them."""
        return self.weight + sum(one.bytes() for one in self._beside)

    def _loaded(self, name: str, needed: int) -> _Resident:
        stamp = self._stamp(name)
        try:
            return _Resident(pipeline=self.load(name), weight=needed, stamp=stamp)
        except Exception as error:
            self._failed[name] = (self._clock(), stamp, error)
            raise

    def _raise_known(self, name: str) -> None:
        """A model that has just failed to load must not cost others their place at every request."""
        failed = self._failed.pop(name, None)
        if failed is not None and self._clock() - failed[0] < RETRY_S and failed[1] == self._stamp(name):
            self._failed[name] = failed
            raise failed[2]

    def _needed(self, name: str) -> int:
        needed = self._weighed.get(name)
        if needed is None:
            needed = self._weighed[name] = self._weigh(name)
        most = self._budget().alone
        if most is not None and needed > most:
            del self._weighed[name]
            raise ModelTooLarge(
                f"model {name} needs {needed / 1e9:.2f} GB for its weights, "
                f"and the device has room (vram_budget_gb) for {most / 1e9:.2f}"
            )
        return needed

    def _has_room(self, name: str, others: Collection[str], taken: int, needed: int) -> bool:
        placed = sum(map(_takes_place, others))
        has_place = placed < self._limit or not _takes_place(name)
        return not others or (has_place and self._is_within(len(others), taken + needed))

    def _is_within(self, others: int, total: int) -> bool:
        """The budget allows so many bytes where a model has ``others`` beside it."""
        budget = self._budget()
        most = budget.together if others > 0 else budget.alone
        return most is None or total <= most

    def loaded(self, name: str) -> Pipeline:
        """A model that has rows and is therefore loaded."""
        return self._resident[name].pipeline

    def close(self) -> None:
        """Unloads everything."""
        while self._resident:
            self._resident.popitem()[1].pipeline.close()


def _takes_place(name: str) -> bool:
    return not name.startswith(PREFIX)
