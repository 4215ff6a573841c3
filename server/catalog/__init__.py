"""The models this server offers, found by id or alias; files dropped into the data folder count without a restart."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from pipelines.errors import InvalidRequest, UnknownModel
from pipelines.model import ModelSpec
from pipelines.registry import LOOKING
from pipelines.request import Task
from pipelines.safety import CheckerFiles
from pipelines.upscalers import PREFIX
from server.catalog.auxiliaries import Auxiliaries
from server.catalog.files import ModelFile, Source
from server.catalog.offer import Offer, Places, read_offer
from server.catalog.upscalers import Upscalers
from server.config import ConfigError, nearest

__all__ = ["Catalog", "ModelFile", "Resolved", "Source"]

logger = logging.getLogger(__name__)

#: Draws when a request names no model while no weights are here: the smallest and the best known.
_STAND_IN = "sd15"

#: Between two looks at the files while everything asked for is found.
_LOOK_EVERY_S = 1.0

#: Path -> date and size, None where there is nothing.
_Fingerprint = dict[Path, tuple[int, int] | None]
_NEVER_SEEN = (-1, -1)


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """The model that draws for a name, and what the client should know about it."""

    model: ModelSpec
    warnings: tuple[str, ...] = ()


class Catalog:
    """Looks models up; case does not matter. Any thread may ask."""

    def __init__(
        self,
        models: Iterable[ModelSpec],
        *,
        default: str | None = None,
        realtime: str | None = None,
        editor: str | None = None,
        captioner: str | None = None,
        configured: Mapping[str, ModelFile] | None = None,
        checker: CheckerFiles | None = None,
        upscalers: Upscalers | None = None,
    ) -> None:
        self._default = default
        self._realtime = realtime
        self._editor = editor
        self._captioner = captioner
        self._upscalers = upscalers or Upscalers()
        self._files: _Files | None = None
        self._take(Offer(models=tuple(models), configured=dict(configured or {}), checker=checker))

    @classmethod
    def load(
        cls,
        *,
        configs: Path,
        data: Path,
        families: Collection[str],
        default_model: str | None = None,
        realtime_model: str | None = None,
        edit_model: str | None = None,
        caption_model: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> Self:
        """Reads ``configs/models``, ``data/models`` and ``configs/demo``, and follows what changes there.

        A stand-in is offered where weights lack. ``families`` are those that are built; models of others are known
        and not offered. Raises ``ConfigError`` for a file of ``configs`` that cannot be used and for an unknown
        default; such files of ``data/models`` are logged and left out.
        """
        files = _Files(Places(configs=configs, data=data), families, clock)
        upscalers = Upscalers(Auxiliaries(data).find)
        catalog = cls(
            (),
            default=default_model,
            realtime=realtime_model,
            editor=edit_model,
            captioner=caption_model,
            upscalers=upscalers,
        )
        catalog._take(files.read({}))
        catalog._files = files
        named = {
            "default_model": default_model,
            "realtime_model": realtime_model,
            "edit_model": edit_model,
            "caption_model": caption_model,
        }
        for key, name in named.items():
            if name is not None and name.strip().lower() not in catalog._by_name:
                raise ConfigError(f"{key} = {name!r} is no model{nearest(name, catalog._by_name)}")
        return catalog

    def get(self, name: str) -> ModelSpec:
        """The model of this id or alias, or the upscaler of this name. Raises ``UnknownModel``."""
        if name.startswith(PREFIX):
            return self._upscalers.get(name)
        model = self._find(name)
        if model is None:
            raise UnknownModel(name)
        return model

    def resolve(self, name: str | None = None, *, realtime: bool = False) -> Resolved:
        """The model that draws for a request: of this name, or without one the realtime or the default model.

        While a model's weights are not here but those of its ``fallback`` are, that one draws, with a warning (flux:
        flux-schnell). Raises ``UnknownModel``, and ``InvalidRequest`` when a name is needed.
        """
        if name is None:
            return self._resolve_default(self._realtime if realtime and self._realtime else self._default)
        model = self._find(name)
        if model is None or model.demo is not None:
            configured = self.find_configured(name)
            other = None if configured is None or configured.fallback is None else self._find(configured.fallback)
            if configured is not None and other is not None and other.demo is None:
                return Resolved(
                    model=other, warnings=(f"The weights of {configured.id} are not here: drawn by {other.id}.",)
                )
        if model is None:
            raise UnknownModel(name)
        return Resolved(model=model)

    def resolve_editor(self) -> Resolved:
        """The model that repaints for a request that names none: the setting's, else one made for nothing else.

        One with weights goes before a stand-in. Raises ``InvalidRequest`` when there is none.
        """
        if self._editor is not None:
            return self.resolve(self._editor)
        able = [model for model in self.models() if Task.INPAINT in model.tasks]
        if not able:
            raise InvalidRequest("There is no model that can inpaint", field="model")
        return Resolved(model=min(able, key=lambda model: (model.demo is not None, len(model.tasks), model.id)))

    def resolve_captioner(self) -> Resolved:
        """The model that describes pictures for a request that names none: the setting's, else any, by id.

        One with weights goes before a stand-in. Raises ``InvalidRequest`` when there is none.
        """
        if self._captioner is not None:
            return self.resolve(self._captioner)
        able = [model for model in self.models() if model.family in LOOKING]
        if not able:
            raise InvalidRequest("There is no model that can describe pictures", field="model")
        return Resolved(model=min(able, key=lambda model: (model.demo is not None, model.id)))

    def default(self) -> ModelSpec:
        """The model of ``resolve`` without a name."""
        return self.resolve().model

    def example(self) -> ModelSpec | None:
        """One that draws from a prompt alone: with weights if there is one, else the best known stand-in."""
        drawing = [model for model in self.models() if Task.TEXT2IMG in model.tasks]
        return min(drawing, key=lambda model: (model.demo is not None, model.id != _STAND_IN), default=None)

    def models(self) -> tuple[ModelSpec, ...]:
        """All that are offered, by id."""
        self._refresh()
        return self._offer.models

    def look_again(self) -> None:
        """Sees at once what has just been changed, not a second later."""
        self._refresh(missed=True)

    def checker(self) -> CheckerFiles | None:
        """The safety checker for all models; None: its weights are not here."""
        self._refresh()
        return self._offer.checker

    @property
    def configured(self) -> Mapping[str, ModelFile]:
        """All models that have a file, by id: also those not offered for want of weights or of their family."""
        return self._offer.configured

    def find_configured(self, name: str) -> ModelFile | None:
        """The configured model of this id, alias or hub id."""
        wanted = name.strip().lower()
        models = self._offer.configured.values()
        for model in models:
            if wanted in (known.lower() for known in model.names):
                return model
        return next((model for model in models if model.source and model.source.hub.lower() == wanted), None)

    def _resolve_default(self, name: str | None) -> Resolved:
        if name is not None:
            return self.resolve(name)
        models = [model for model in self.models() if model.tasks]
        real = [model for model in models if model.demo is None]
        # The only model with weights; where none has any, the stand-in that every checkout has, or the only one.
        choice = real or [model for model in models if model.id == _STAND_IN] or models
        if len(choice) == 1:
            return Resolved(model=choice[0])
        ids = ", ".join(model.id for model in models) or "none"
        raise InvalidRequest(f"A model is needed; there are: {ids}", field="model")

    def _find(self, name: str) -> ModelSpec | None:
        self._refresh()
        key = name.strip().lower()
        if key not in self._by_name:
            self._refresh(missed=True)
        return self._by_name.get(key)

    def _refresh(self, *, missed: bool = False) -> None:
        if self._files is not None and (offer := self._files.read_if_changed(missed=missed)) is not None:
            self._take(offer)

    def _take(self, offer: Offer) -> None:
        by_name = {name.lower(): model for model in offer.models for name in (model.id, *model.aliases)}
        # Each is replaced whole: another thread sees the old or the new one.
        self._offer, self._by_name = offer, by_name


class _Files:
    """Reads the offer again when a file changed that it depends on."""

    def __init__(self, places: Places, families: Collection[str], clock: Callable[[], float]) -> None:
        self._places = places
        self._families = families
        self._clock = clock
        self._lock = threading.Lock()
        self._looked_at = 0.0
        self._seen: _Fingerprint = {}
        self._told: dict[Path, str] = {}

    def read(self, before: _Fingerprint) -> Offer:
        """Raises ``ConfigError`` for a file of the checkout. ``before`` is what the files were just before."""
        offer = read_offer(self._places, self._families, self._tell)
        # What was not looked at before may have changed while it was read: the next look finds it new, and reads again.
        self._seen = {path: before.get(path, _NEVER_SEEN) for path in offer.watched}
        self._looked_at = self._clock()
        return offer

    def read_if_changed(self, *, missed: bool) -> Offer | None:
        """None if nothing changed. At most once a second, unless a name was ``missed``, which may just have come."""
        with self._lock:
            now = self._clock()
            if not missed and now - self._looked_at < _LOOK_EVERY_S:
                return None
            self._looked_at = now
            seen = _fingerprint(self._seen)
            if seen == self._seen:
                return None
            try:
                return self.read(seen)
            except (ConfigError, OSError) as error:
                # Somebody edits the checkout's own files: what was offered stays until they can be read.
                logger.warning("models not read again: %s", error)
                self._seen = seen
                return None

    def _tell(self, file: Path, error: ConfigError | None) -> None:
        """Once for each thing that is wrong with a file."""
        if error is None:
            self._told.pop(file, None)
        elif self._told.get(file) != str(error):
            self._told[file] = str(error)
            logger.warning("model left out: %s", error)


def _fingerprint(paths: Iterable[Path]) -> _Fingerprint:
    return {path: _date_and_size(path) for path in paths}


def _date_and_size(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size
