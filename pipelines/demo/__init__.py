"""Small checkpoints in the real formats, made on the spot: for a first run without weights, and for tests.

They draw coloured mosaics, not what the prompt says; but prompt, seed, guidance, steps and scheduler all show in them.
"""

from __future__ import annotations

import importlib
import shutil
import uuid
from pathlib import Path

from pipelines.auxiliary import AuxiliaryKind, FindAuxiliary, find_auxiliary

#: What demo models have stand-ins of: no other weights of these kinds fit them.
_STAND_INS = frozenset({AuxiliaryKind.IP_ADAPTER, AuxiliaryKind.IMAGE_ENCODER})
_IP_ADAPTERS = "ip-adapters"


def finding_stand_ins(find: FindAuxiliary, folder: Path) -> FindAuxiliary:
    """What a demo model finds: IP-Adapters of its size and their encoders, made when first asked for; else ``find``.

    ``folder``: where the demo checkpoints lie.
    """

    def found(kind: AuxiliaryKind, name: str) -> Path | None:
        if kind not in _STAND_INS:
            return find(kind, name)
        return find_auxiliary(ensure(_IP_ADAPTERS, folder), kind, name)

    return found


def ensure(name: str, folder: Path) -> Path:
    """The demo checkpoint ``folder / name``, made first if it is not there.

    The folder appears whole or not at all: a killed process leaves no half checkpoint, and of two processes that make
    the same one the first wins. Raises ``KeyError`` for a name that ``BUILDERS`` lacks and ``OSError`` from the disk.
    """
    module, _, builder = BUILDERS[name].partition(":")
    target = folder / name
    if target.is_dir():
        return target
    unfinished = folder / f".{name}-{uuid.uuid4().hex}"
    unfinished.mkdir(parents=True)
    try:
        # torch and diffusers are imported when a checkpoint is made, not before.
        getattr(importlib.import_module(module), builder)(unfinished)
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


#: What writes each checkpoint into an empty folder.
BUILDERS: dict[str, str] = {
    "sd15": "pipelines.demo.sd15:build",
    "sd15-inpaint": "pipelines.demo.sd15:build_inpaint",
    "sd15-lcm": "pipelines.demo.sd15:build_lcm",
    "sdxl": "pipelines.demo.sdxl:build",
    "sdxl-inpaint": "pipelines.demo.sdxl:build_inpaint",
    "sdxl-turbo": "pipelines.demo.sdxl:build_turbo",
    "sdxl-lcm": "pipelines.demo.sdxl:build_lcm",
    "flux": "pipelines.demo.flux:build",
    "flux-schnell": "pipelines.demo.flux:build_schnell",
    "flux-fill": "pipelines.demo.flux:build_fill",
    "florence2": "pipelines.demo.florence2:build",
    # Beside models of any of these.
    _IP_ADAPTERS: "pipelines.demo.ip_adapter:build",
}
