"""Makes safetensors of a file that would have to be unpickled: at the operator's word, in a limited process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import uuid
from dataclasses import dataclass
from pathlib import Path

from pipelines.errors import BrokenCheckpoint
from pipelines.weight_file import PICKLED, WeightFile
from server import unpickle

_SUFFIX = ".safetensors"
#: All that the process inherits: what an interpreter may need to start, and no secret.
_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH")
#: Names of left-out entries that are shown.
_SHOWN = 8


class ConvertError(Exception):
    """A file that is not converted; ``str(error)`` is one line for the operator."""


@dataclass(frozen=True, kw_only=True)
class Converted:
    """What was written."""

    file: Path
    tensors: int
    #: What of the source is not in it, and where in the source it was; sentences.
    notes: tuple[str, ...]


def convert(source: Path, target: Path | None = None) -> Converted:
    """Writes ``target``, a file or a folder; left out: beside the source.

    It appears whole, compared with what was read, or not at all. Raises ``ConvertError``: nothing to convert, something
    there already, a file that wants code to be run, too little memory or disk.
    """
    target = _place(source, target)
    # Hidden, so that a server that watches the folder does not take it for a finished file.
    partial = target.with_name(f".{target.stem}-{uuid.uuid4().hex}{_SUFFIX}")
    try:
        answer = _run(source, partial)
        tensors = _count(partial)
        if target.exists():
            raise ConvertError(f"{target} is there already")
        partial.rename(target)
    except OSError as error:
        raise ConvertError(f"{target} cannot be written: {error.strerror}") from error
    finally:
        partial.unlink(missing_ok=True)
    return Converted(file=target, tensors=tensors, notes=_notes(answer))


def _place(source: Path, target: Path | None) -> Path:
    if not source.is_file():
        raise ConvertError(f"{source} is no file")
    if source.suffix not in PICKLED:
        raise ConvertError(f"{source} does not end in {', '.join(PICKLED)}: there is nothing to convert")
    if target is None:
        target = source.with_suffix(_SUFFIX)
    elif target.is_dir():
        target = target / f"{source.stem}{_SUFFIX}"
    if target.suffix != _SUFFIX:
        raise ConvertError(f"{target} does not end in {_SUFFIX}")
    if target.exists():
        raise ConvertError(f"{target} is there already")
    if not target.parent.is_dir():
        raise ConvertError(f"{target.parent} is no folder")
    return target


def _run(source: Path, partial: Path) -> dict[str, object]:
    arguments = [str(source.resolve()), str(partial.resolve())]
    inherited = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    ended = subprocess.run(
        # Isolated: no variables, no user's packages, and the folder of the script is no place to import from.
        [sys.executable, "-I", unpickle.__file__, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        cwd="/",
        # One thread and no GPU: both would need more than the limits allow.
        env={**inherited, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )
    try:
        answer = json.loads(ended.stdout)
    except ValueError:
        reason = signal.Signals(-ended.returncode).name if ended.returncode < 0 else f"status {ended.returncode}"
        said = ended.stderr.decode(errors="replace").strip().splitlines()[-1:] or [""]
        raise ConvertError(f"{source}: reading it ended with {reason}: {_line(said[0])}".rstrip(": ")) from None
    if not isinstance(answer, dict):
        raise ConvertError(f"{source}: reading it ended without an answer")
    if "error" in answer:
        raise ConvertError(f"{source} {_line(answer['error'])}")
    return answer


def _count(partial: Path) -> int:
    """Tensors in the file: it is believed rather than who wrote it."""
    try:
        return len(WeightFile.open(partial, "").tensors)
    except BrokenCheckpoint:
        raise ConvertError(f"what was written is no {_SUFFIX} file") from None


def _notes(answer: dict[str, object]) -> tuple[str, ...]:
    unwrapped, dropped = (_names(answer.get(key)) for key in ("unwrapped", "dropped"))
    notes = [f"Taken from {', '.join(unwrapped)}."] if unwrapped else []
    if dropped:
        more = len(dropped) - _SHOWN
        shown = ", ".join(dropped[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
        notes.append(f"Left out: {shown}.")
    return tuple(notes)


def _names(value: object) -> list[str]:
    return [_line(name) for name in value] if isinstance(value, list) else []


def _line(value: object) -> str:
    """One line that a terminal shows as it is: what a strange file says may hold anything."""
    return "".join(letter if letter.isprintable() else " " for letter in str(value))[:200]
