"""Files that are there whole or not at all, also after a power cut."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

#: What a crash between writing and renaming leaves behind; ``make_folder`` removes it.
_UNFINISHED = ".tmp"


def make_folder(folder: Path) -> None:
    """Makes the folder, or clears it of what a crash left behind. Raises ``OSError``."""
    folder.mkdir(parents=True, exist_ok=True)
    for unfinished in folder.glob(f".*{_UNFINISHED}"):
        unfinished.unlink(missing_ok=True)


def write_file(path: Path, data: bytes) -> None:
    """Stores durably and at once; replaces what is there. Raises ``OSError``."""
    # Random, because the same name may be stored twice at the same time.
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(8)}{_UNFINISHED}")
    try:
        with unfinished.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        # Replaces a symlink that someone planted under the name instead of following it.
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    # A rename is durable only once its directory is.
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
