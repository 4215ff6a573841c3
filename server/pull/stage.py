"""What one pull fetches, gathered beside its home until all is there: no half pull is offered."""

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
from server.pull.home import Home
from server.pull.hub import Hub, RemoteFile
from server.pull.record import NAME, Record, Wish, holds, read_record

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


def pull_files(model: str, wish: Wish, home: Home, hub: Hub, progress: Progress, *, update: bool = False) -> bool:
    """Makes ``home`` hold what the wish asks for, at the commit of the first pull unless ``update``.

    False if it did already. Raises ``PullError``; what has come stays for the next try.
    """
    home.lock.parent.mkdir(parents=True, exist_ok=True)
    with _alone(model, home.lock):
        old = read_record(home.record)
        staged = read_record(home.stage / NAME)
        _refuse_foreign(model, home, old, staged)
        if old is not None and old.wish == wish and not update and old.is_complete(home.folder):
            return False
        record = _plan(wish, home, hub, None if update else _pinned(wish, old, staged))
        if old is not None and old.files == record.files and old.is_complete(home.folder):
            # The same files, only the record is not up to date: another commit that changed nothing of ours.
            record.write(home.record)
            return False
        _prepare(home, record, old, staged)
        missing = {place: file for place, file in record.files.items() if not holds(home.stage / place, file)}
        total = sum(file.size for file in record.files.values())
        needed = sum(file.size - _size(_part(home.stage / place, file)) for place, file in missing.items())
        _refuse_small_disk(model, home.stage.parent, needed)
        progress.begin(model, record.commit, total, total - needed)
        for place, file in missing.items():
            _fetch(wish.hub, record.commit, file, home.stage / place, hub, progress)
        home.move_in()
    return True


def _pinned(wish: Wish, *records: Record | None) -> str | None:
    """The commit that this wish came to before, whatever its revision is by now."""
    for record in records:
        if record is not None and (record.wish.hub, record.wish.revision) == (wish.hub, wish.revision):
            return record.commit
    return None


def _plan(wish: Wish, home: Home, hub: Hub, commit: str | None) -> Record:
    listing = hub.list(wish.hub, commit or wish.revision)
    try:
        names = choose(listing.files, wish.patterns, variant=wish.variant, needs_all=wish.needs_all)
    except PullError as error:
        raise PullError(f"{wish.hub}: {error}") from None
    if not any(name.endswith(".safetensors") for name in names):
        others = [name for name in sorted(listing.files) if name.endswith(".safetensors")][:5]
        hint = f"; it has {', '.join(others)}" if others else ""
        raise PullError(f"{wish.hub} has no safetensors weights in the folders that are needed{hint}")
    files = {home.place(name): listing.files[name] for name in names}
    if len(files) < len(names):
        raise PullError(f"{wish.hub}: several of {', '.join(names)} would be called {', '.join(files)}")
    return Record(wish=wish, commit=listing.commit, files=files)


def _prepare(home: Home, record: Record, old: Record | None, staged: Record | None) -> None:
    """Clears the stage of what the record does not have, and takes over what did not change since the last pull."""
    stage = home.stage
    stage.mkdir(exist_ok=True)
    for place, file in staged.files.items() if staged is not None else ():
        if record.files.get(place) != file:
            (stage / place).unlink(missing_ok=True)
    for place, file in old.files.items() if old is not None else ():
        same = record.files.get(place) == file
        if same and holds(home.folder / place, file) and not holds(stage / place, file):
            _link(home.folder / place, stage / place)
    wanted = {_part(stage / place, file) for place, file in record.files.items()}
    for part in stage.rglob("*.part"):
        if part not in wanted:
            part.unlink()
    record.write(stage / NAME)


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        # Not every file system has links.
        shutil.copyfile(source, target)


def _fetch(repository: str, commit: str, file: RemoteFile, target: Path, hub: Hub, progress: Progress) -> None:
    part = _part(target, file)
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
    part.replace(target)


def _digest(path: Path, file: RemoteFile) -> str:
    kind, _, _ = file.digest.partition(":")
    # Git hashes a header with the length, then the bytes.
    digest = hashlib.sha256() if kind == "sha256" else hashlib.sha1(f"blob {_size(path)}\0".encode())
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return f"{kind}:{digest.hexdigest()}"


def _part(target: Path, file: RemoteFile) -> Path:
    """The partial file; its name holds the content's, so that it is never continued with other bytes."""
    return target.with_name(f"{target.name}.{file.digest.partition(':')[2][:12]}.part")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _refuse_foreign(model: str, home: Home, record: Record | None, staged: Record | None) -> None:
    if record is not None or (there := home.taken()) is None:
        return
    if staged is not None and staged.is_complete(home.folder):
        # Killed between moving in and writing that down.
        return
    what = (
        f"{there} holds files that were not pulled: move them" if there.is_dir() else f"{there} was not pulled: move it"
    )
    raise PullError(f"{what} away to pull {model}")


def _refuse_small_disk(model: str, folder: Path, needed: int) -> None:
    there = shutil.disk_usage(folder).free
    if needed and needed + _RESERVE_BYTES > there:
        raise PullError(
            f"{model} needs {needed / 1e9:.1f} GB and {_RESERVE_BYTES / 1e9:.1f} GB to spare, "
            f"{folder} has {there / 1e9:.1f} GB free"
        )


@contextmanager
def _alone(model: str, path: Path) -> Iterator[None]:
    """One pull of a model at a time, for they write the same files. The lock goes with the process; its file stays."""
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise PullError(f"{model} is being pulled by another process") from None
        yield
