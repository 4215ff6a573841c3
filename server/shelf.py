"""Weights that come and go while the server runs: fetched when a client asks for it, offered once they are whole."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import secrets
import shutil
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO, TypeVar

import orjson

from pipelines.auxiliary import AuxiliaryKind, find_in
from pipelines.errors import Error, InvalidRequest, UnknownModel
from server.catalog import Catalog, ModelFile
from server.catalog.weights import SUFFIX, is_whole
from server.config import ConfigError, read_toml
from server.errors import BodyTooLarge, QueueFull, Unavailable
from server.net import Guard
from server.storage.disk import make_folder, write_file
from server.webhooks import Webhooks

T = TypeVar("T")

logger = logging.getLogger(__name__)

#: Left free on the disk, for the database and the pictures.
_RESERVE_BYTES = 2 * 1024**3
_MOST_AT_ONCE = 8
#: What becomes a file's name, and so nothing that leads elsewhere.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,95}")
_HUB_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,95}/[A-Za-z0-9][A-Za-z0-9_.-]{0,95}")
_MODELS = "models"

#: Fetches a configured model from the hub, by id; blocks. Raises an error whose text may be shown.
Pull = Callable[[str], None]
#: The same for a VAE in diffusers' layout: the name it gets, and the repository.
PullVae = Callable[[str, str], None]


@dataclass(frozen=True, kw_only=True)
class Addition:
    """What is to come."""

    name: str
    #: One safetensors file.
    url: str | None = None
    #: Of a model in diffusers' folders, or a VAE that is one: owner/name on the hub.
    hub: str | None = None
    #: None: a model.
    kind: AuxiliaryKind | None = None
    #: Key of ``pipelines.registry.FAMILIES``; models only.
    family: str | None = None
    #: Told when it has come or failed.
    webhook: str | None = None

    @property
    def folder(self) -> str:
        """Inside the data folder."""
        return _MODELS if self.kind is None else self.kind.value


class Shelf:
    """The data folder's weights. ``start`` before use, ``close`` at the end; what was being fetched then is gone."""

    def __init__(
        self, data: Path, guard: Guard, catalog: Catalog, webhooks: Webhooks, pull: Pull, pull_vae: PullVae
    ) -> None:
        self._data = data
        self._guard = guard
        self._catalog = catalog
        self._webhooks = webhooks
        self._pull = pull
        self._pull_vae = pull_vae
        self._coming: dict[tuple[str, str], asyncio.Task[None]] = {}
        # One after the other: two would share the line, and each believe that the free disk is its own.
        self._turn = asyncio.Lock()

    async def start(self) -> None:
        """Makes the folders, and clears them of what a crash left behind. Raises ``Unavailable``."""
        try:
            for name in (_MODELS, *AuxiliaryKind):
                await asyncio.to_thread(make_folder, self._data / name)
        except OSError as error:
            raise Unavailable("The folders of weights cannot be made") from error

    async def close(self) -> None:
        """Stops what is being fetched."""
        tasks = list(self._coming.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def add(self, addition: Addition) -> None:
        """Begins to fetch; asked for twice, it comes once.

        Raises ``InvalidRequest`` for a name that is taken or none, ``RefusedAddress``, and ``QueueFull``.
        """
        key = (addition.folder, addition.name.lower())
        if key in self._coming:
            return
        if _NAME.fullmatch(addition.name) is None:
            raise InvalidRequest("model_id must be 1 to 96 letters, digits, dots, dashes or underscores", field="model")
        if addition.hub is not None and _HUB_NAME.fullmatch(addition.hub) is None:
            raise InvalidRequest("url must be owner/name on the hub", field="url")
        if addition.url is not None:
            self._guard.check_url(addition.url)
        self._refuse_taken(addition)
        if len(self._coming) >= _MOST_AT_ONCE:
            raise QueueFull(f"Maximum {_MOST_AT_ONCE} models are loaded at a time.")
        task = self._coming[key] = asyncio.create_task(self._bring(addition), name=f"add {addition.name}")
        task.add_done_callback(lambda _: self._coming.pop(key))

    async def remove(self, name: str) -> None:
        """Deletes a model of the data folder: its file first, so that it is not offered any more, then its weights.

        Raises ``UnknownModel``; ``InvalidRequest`` for one that the checkout describes or that another one needs.
        """
        model = self._configured(name)
        if model is None:
            raise UnknownModel(name)
        folder = self._data / _MODELS
        file = await asyncio.to_thread(_find_file, folder, model.id)
        if file is None:
            raise InvalidRequest(f"{model.id} is part of the server's configuration and is not deleted", field="model")
        others = [one for one in self._catalog.configured.values() if one.id != model.id]
        weights = _weights(folder, model)
        if any(one.weights.base == model.id or _share(weights, _files(folder, one)) for one in others):
            raise InvalidRequest(f"Another model needs the weights of {model.id}", field="model")
        await asyncio.to_thread(_delete, file, weights)
        self._catalog.look_again()
        logger.info("model %s was deleted", model.id)

    def _refuse_taken(self, addition: Addition) -> None:
        folder = self._data / addition.folder
        if addition.kind is None and addition.hub is not None and self._was_begun(addition):
            return
        if addition.kind is not None:
            taken = find_in(folder, addition.name) is not None
        else:
            taken = self._is_offered(addition.name) or self._configured(addition.name) is not None
        if taken or _lies_in(folder, addition.name):
            raise InvalidRequest(f"{addition.name} is here already, and nothing is overwritten", field="model")

    def _was_begun(self, addition: Addition) -> bool:
        """The very same was being pulled when the server was killed: it goes on from there."""
        model = self._configured(addition.name)
        folder = self._data / addition.folder
        if model is None or model.source is None or (folder / addition.name).exists():
            return False
        same = (model.id, model.source.hub, model.family) == (addition.name, addition.hub, addition.family)
        return same and _find_file(folder, addition.name) is not None

    def _is_offered(self, name: str) -> bool:
        # By its name or another's; a stand-in may have no file of its own.
        names = (one.lower() for model in self._catalog.models() for one in (model.id, *model.aliases))
        return name.lower() in names

    def _configured(self, name: str) -> ModelFile | None:
        self._catalog.look_again()
        return self._catalog.find_configured(name)

    async def _bring(self, addition: Addition) -> None:
        """The boundary of an addition: whatever fails is told to its webhook and the log."""
        try:
            async with self._turn:
                await self._fetch(addition)
        except Error as error:
            message: str | None = str(error)
            logger.warning("%s %s was not added: %s", addition.folder, addition.name, message)
        except Exception:
            message = "Internal server error. Please try again."
            logger.exception("%s %s was not added", addition.folder, addition.name)
        else:
            message = None
            logger.info("%s %s was added", addition.folder, addition.name)
        if addition.webhook is not None:
            self._webhooks.send(addition.webhook, orjson.dumps(_told(addition.name, message)))

    async def _fetch(self, addition: Addition) -> None:
        folder = self._data / addition.folder
        if addition.url is not None:
            await self._download(addition.url, folder, f"{addition.name}{SUFFIX}")
        if addition.kind is not None:
            if addition.hub is not None:
                await _in_background(partial(self._pull_vae, addition.name, addition.hub), name=f"pull {addition.name}")
            return
        origin = f'source.hub = "{addition.hub}"' if addition.hub else f'weights.file = "{addition.name}{SUFFIX}"'
        text = f'id = "{addition.name}"\nfamily = "{addition.family}"\n{origin}\n'
        file = folder / f"{addition.name}.toml"
        await asyncio.to_thread(write_file, file, text.encode())
        if addition.hub is None:
            return
        # What is pulled is found by its file.
        await asyncio.to_thread(self._catalog.look_again)
        try:
            await _in_background(partial(self._pull, addition.name), name=f"pull {addition.name}")
        except BaseException:
            file.unlink(missing_ok=True)
            raise

    async def _download(self, url: str, folder: Path, name: str) -> None:
        unfinished = folder / f".{name}.{secrets.token_hex(8)}.tmp"
        room = shutil.disk_usage(folder).free - _RESERVE_BYTES
        try:
            with unfinished.open("xb") as file:

                async def take(part: bytes) -> None:
                    # An OSError would be taken for the network's.
                    await asyncio.to_thread(_put, file.write, part)

                await self._guard.download(url, take, max_bytes=max(room, 0))
                await asyncio.to_thread(_put, _sync, file)
            if not await asyncio.to_thread(is_whole, unfinished):
                raise InvalidRequest("What the URL gave is no whole safetensors file", field="url")
            # Unlike a rename, it replaces nothing that came meanwhile.
            os.link(unfinished, folder / name)
        except BodyTooLarge:
            raise Unavailable("The file is larger than the server has room for") from None
        except FileExistsError:
            raise InvalidRequest(f"{name} is here already, and nothing is overwritten", field="model") from None
        finally:
            unfinished.unlink(missing_ok=True)


def _find_file(folder: Path, model: str) -> Path | None:
    """The TOML file in the data folder that describes the model; None where it is elsewhere."""
    for file in sorted(folder.glob("[!.]*.toml")):
        with suppress(ConfigError):
            if read_toml(file).get("id") == model:
                return file
    return None


def _weights(folder: Path, model: ModelFile) -> list[Path]:
    """What a model keeps to itself in the folder, and nothing outside of it, however its paths are written."""
    if model.weights.base is not None:
        return []
    path = _inside(folder, model.weights.file or model.weights.folder or model.id)
    return [] if path is None else [path]


def _files(folder: Path, model: ModelFile) -> list[Path]:
    """Whatever a model reads in the folder."""
    weights = model.weights
    names = [*weights.components.values(), *weights.loras, *filter(None, (weights.file, weights.folder))]
    if weights.base is None and weights.file is None and weights.folder is None:
        names.append(model.id)
    return [path for name in names if (path := _inside(folder, name)) is not None]


def _inside(folder: Path, name: str) -> Path | None:
    path = (folder / name).resolve()
    return path if path != folder.resolve() and path.is_relative_to(folder.resolve()) else None


def _share(weights: Iterable[Path], files: Iterable[Path]) -> bool:
    """To delete the one would take away of the other: files lie in folders."""
    files = list(files)
    return any(one.is_relative_to(other) or other.is_relative_to(one) for one in weights for other in files)


def _delete(file: Path, weights: Iterable[Path]) -> None:
    file.unlink(missing_ok=True)
    for path in weights:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _lies_in(folder: Path, name: str) -> bool:
    """Anything of this name, whole or not; two names that differ in case only would be one on some disks."""
    names = {name.lower(), f"{name}{SUFFIX}".lower(), f"{name}.toml".lower()}
    return any(path.name.lower() in names for path in folder.glob("[!.]*"))


def _put(write: Callable[[T], object], value: T) -> None:
    try:
        write(value)
    except OSError as error:
        raise Unavailable("The server cannot store the file") from error


def _sync(file: BinaryIO) -> None:
    # What was written last waits in the process itself.
    file.flush()
    os.fsync(file.fileno())


async def _in_background(work: Callable[[], None], *, name: str) -> None:
    """On a thread that ends with the process: one of asyncio's own would keep a server from ending for hours."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def tell(error: BaseException | None) -> None:
        if done.done():
            return
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)

    def run() -> None:
        failure: BaseException | None = None
        try:
            work()
        except Exception as error:
            failure = error
        with suppress(RuntimeError):
            # Raised where the event loop was closed meanwhile: nobody is left to be told.
            loop.call_soon_threadsafe(tell, failure)

    threading.Thread(target=run, name=name, daemon=True).start()
    await done


def _told(name: str, message: str | None) -> dict[str, str]:
    text = message or "model loaded"
    return {"status": "failed" if message else "success", "model_id": name, "message": text, "messege": text}
