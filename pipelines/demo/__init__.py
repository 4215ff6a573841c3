"""Small checkpoints in the real formats, made on the spot: for a first run without weights, and for tests.

They draw coloured mosaics, not what the prompt says; but prompt, seed, guidance, steps and scheduler all show in them.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable
from pathlib import Path


def ensure(name: str, folder: Path) -> Path:
    """The demo checkpoint ``folder / name``, made first if it is not there.

    The folder appears whole or not at all: a killed process leaves no half checkpoint, and of two processes that make
    the same one the first wins. Raises ``KeyError`` for a name that ``BUILDERS`` lacks and ``OSError`` from the disk.
    """
    builder = BUILDERS[name]
    target = folder / name
    if target.is_dir():
        return target
    unfinished = folder / f".{name}-{uuid.uuid4().hex}"
    unfinished.mkdir(parents=True)
    try:
        builder(unfinished)
        _move(unfinished, target)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return target


def _move(source: Path, target: Path) -> None:
    try:
        source.rename(target)
    except OSError:
        # Somebody else has just put the same bytes there: a folder cannot be renamed over one that holds files.
        if not target.is_dir():
            raise


def _sd15(folder: Path) -> None:
    from pipelines.demo import sd15

    sd15.build(folder)


#: What writes each checkpoint into an empty folder. The builders import torch and diffusers when called, not before.
BUILDERS: dict[str, Callable[[Path], None]] = {"sd15": _sd15}
