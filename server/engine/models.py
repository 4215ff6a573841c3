"""The models on the device: loaded when first asked for, the one unused for longest makes room."""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable

from pipelines.base import Pipeline

logger = logging.getLogger(__name__)


class ResidentModels:
    """At most ``limit`` loaded pipelines."""

    def __init__(self, load: Callable[[str], Pipeline], *, limit: int) -> None:
        #: Loads a model by id.
        self.load = load
        self._limit = limit
        self._resident: OrderedDict[str, Pipeline] = OrderedDict()

    @property
    def names(self) -> tuple[str, ...]:
        """Loaded models, the one used last at the end."""
        return tuple(self._resident)

    def fits(self, name: str, busy: set[str]) -> bool:
        """The model is loaded, or can be without taking one away that is in use."""
        if name in self._resident or len(self._resident) < self._limit:
            return True
        return any(other not in busy for other in self._resident)

    def get(self, name: str, busy: set[str]) -> Pipeline:
        """The loaded model; loads it and closes the ones that must go. Raises what loading raises."""
        found = self._resident.get(name)
        if found is None:
            for other in list(self._resident):
                if len(self._resident) >= self._limit and other not in busy:
                    self._resident.pop(other).close()
                    logger.info("model %s unloaded to make room for %s", other, name)
            began = time.monotonic()
            found = self._resident[name] = self.load(name)
            logger.info("model %s loaded in %.2f s", name, time.monotonic() - began)
        self._resident.move_to_end(name)
        return found

    def loaded(self, name: str) -> Pipeline:
        """A model that has rows and is therefore loaded."""
        return self._resident[name]

    def close(self) -> None:
        """Unloads everything."""
        while self._resident:
            self._resident.popitem()[1].close()
