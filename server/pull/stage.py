"""One model's files, fetched into a folder beside the real one, which it then becomes: no half pull is offered."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from server.pull.choose import choose
from server.pull.errors import PullError
from server.pull.hub import Hub, RemoteFile
from server.pull.record import Record, Wish, holds, read_record

#: Left free on the disk, for the database and the pictures of a server that runs.
_RESERVE_BYTES = 256 * 1024 * 1024
_CHUNK_BYTES = 4 * 1024 * 1024


class Progress(Protocol):
    """Who shows how far a pull is; sizes in bytes."""

    def begin(self, model: str, commit: str, total: int, done: int) -> None:
        """A model of ``total`` bytes, ``done`` of which are here from an earlier try."""

    def file(self, name: str, size: int, done: int) -> None:
        """The next file."""

    def advance(self, count: int) -> None:
        """Bytes of that file came; less than zero when some are thrown away."""


def pull_files(model: str, wish: Wish, folder: Path, hub: Hub, progress: Progress, *, update: bool = False) -> bool:
    """Makes ``folder`` hold what the wish asks for, at the commit of the first pull unless ``update``.

    False if it did already. Raises ``PullError``; what has come stays for the next try.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _alone(model, folder):
        old = read_record(folder)
        _refuse_foreign(model, folder, old)
        if old is not None and old.wish == wish and not update and old.is_complete(folder):
            return False
        stage = folder.with_name(f".{folder.name}.part")
        record = _plan(wish, hub, None if update else _pinned(wish, old, read_record(stage)))
        if old is not None and old.files == record.files and old.is_complete(folder):
            # The same files, only the record is not up to date: another commit that changed nothing of ours.
            record.write(folder)
            return False
        _prepare(stage, record, folder, old)
        missing = [file for file in record.files.values() if not holds(stage, file)]
        total = sum(file.size for file in record.files.values())
        needed = sum(file.size - _size(_part(stage, file)) for file in missing)
        _refuse_small_disk(model, folder.parent, needed)
        progress.begin(model, record.commit, total, total - needed)
        for file in missing:
            _fetch(wish.hub, record.commit, file, stage, hub, progress)
        _swap(stage, folder)
    return True


def _pinned(wish: Wish, *records: Record | None) -> str | None:
    """The commit that this wish came to before, whatever its revision is by now."""
    for record in records:
        if record is not None and (record.wish.hub, record.wish.revision) == (wish.hub, wish.revision):
            return record.commit
    return None


def _plan(wish: Wish, hub: Hub, commit: str | None) -> Record:
    listing = hub.list(wish.hub, commit or wish.revision)
    try:
        names = choose(listing.files, wish.patterns, variant=wish.variant, needs_all=wish.needs_all)
    except PullError as error:
        raise PullError(f"{wish.hub}: {error}") from None
    if not any(name.endswith(".safetensors") for name in names):
        others = [name for name in sorted(listing.files) if name.endswith(".safetensors")][:5]
        hint = f"; it has {', '.join(others)}" if others else ""
        raise PullError(f"{wish.hub} has no safetensors weights in the folders that are needed{hint}")
    return Record(wish=wish, commit=listing.commit, files={name: listing.files[name] for name in names})


def _prepare(stage: Path, record: Record, folder: Path, old: Record | None) -> None:
    """Clears the stage of what the record does not have, and takes over what did not change since the last pull."""
    stage.mkdir(exist_ok=True)
    staged = read_record(stage)
    for known, place in ((staged, stage), (old, folder)):
        for file in known.files.values() if known is not None else ():
            same = record.files.get(file.name) == file
            if place == stage and not same:
                (stage / file.name).unlink(missing_ok=True)
            elif place == folder and same and holds(folder, file) and not holds(stage, file):
                _link(folder / file.name, stage / file.name)
    wanted = {_part(stage, file) for file in record.files.values()}
    for part in stage.rglob("*.part"):
        if part not in wanted:
            part.unlink()
    record.write(stage)


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        # Not every file system has links.
        shutil.copyfile(source, target)


def _fetch(repository: str, commit: str, file: RemoteFile, stage: Path, hub: Hub, progress: Progress) -> None:
    part = _part(stage, file)
    part.parent.mkdir(parents=True, exist_ok=True)
    if _size(part) > file.size:
        part.unlink()
    progress.file(file.name, file.size, _size(part))
    try:
        hub.fetch(repository, commit, file, part, progress.advance)
    except PullError:
        raise
    except OSError as error:
        # A full disk, or a file of another size than announced.
        raise PullError(f"{file.name}: {error.strerror or error}") from None
    if _digest(part, file) != file.digest:
        part.unlink()
        raise PullError(f"{repository}: {file.name} arrived damaged (not {file.digest}); it is removed, pull again")
    with part.open("rb") as stream:
        os.fsync(stream.fileno())
    part.replace(stage / file.name)


def _digest(path: Path, file: RemoteFile) -> str:
    kind, _, _ = file.digest.partition(":")
    # Git hashes a header with the length, then the bytes.
    digest = hashlib.sha256() if kind == "sha256" else hashlib.sha1(f"blob {_size(path)}\0".encode())
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return f"{kind}:{digest.hexdigest()}"


def _swap(stage: Path, folder: Path) -> None:
    """The stage becomes the folder; a server that runs keeps the old files that it has open."""
    outgoing = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(outgoing, ignore_errors=True)
    if folder.exists():
        folder.rename(outgoing)
    stage.rename(folder)
    shutil.rmtree(outgoing, ignore_errors=True)


def _part(stage: Path, file: RemoteFile) -> Path:
    """The partial file; its name holds the content's, so that it is never continued with other bytes."""
    return stage / f"{file.name}.{file.digest.partition(':')[2][:12]}.part"


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _refuse_foreign(model: str, folder: Path, record: Record | None) -> None:
    if record is None and folder.is_dir() and any(folder.iterdir()):
        raise PullError(f"{folder} holds files that were not pulled: move them away to pull {model}")


def _refuse_small_disk(model: str, folder: Path, needed: int) -> None:
    there = shutil.disk_usage(folder).free
    if needed and needed + _RESERVE_BYTES > there:
        raise PullError(
            f"{model} needs {needed / 1e9:.1f} GB and {_RESERVE_BYTES / 1e9:.1f} GB to spare, "
            f"{folder} has {there / 1e9:.1f} GB free"
        )


@contextmanager
def _alone(model: str, folder: Path) -> Iterator[None]:
    """One pull of a model at a time, for they write the same files. The lock goes with the process; its file stays."""
    with folder.with_name(f".{folder.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise PullError(f"{model} is being pulled by another process") from None
        yield
