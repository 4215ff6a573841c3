"""Where the safety checker lies: with any checkpoint that came with one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from pipelines.errors import BrokenCheckpoint
from pipelines.folder import find_weights
from pipelines.model import ModelSpec
from pipelines.safety import CHECKER, PROCESSOR, CheckerFiles
from server.catalog.weights import is_whole
from server.config import ConfigError

#: The demo checkpoint, a key of ``pipelines.demo.BUILDERS``, that brings a checker along.
_DEMO = "sd15"


def find_checker(
    models: Path, offered: Iterable[ModelSpec], report: Callable[[Path, ConfigError | None], None]
) -> CheckerFiles | None:
    """The first whole one below ``models``, in the order of names; one with pickled weights is reported.

    The demo's, which knows one colour and nothing else, counts only as long as all that draws are demos.
    """
    for folder in _folders(models):
        try:
            found = find_weights(folder / CHECKER, folder.name)
        except BrokenCheckpoint as error:
            report(folder / CHECKER, ConfigError(str(error)))
            continue
        report(folder / CHECKER, None)
        configured = all(file.is_file() for file in (_config(folder), folder / PROCESSOR / "preprocessor_config.json"))
        if found is not None and configured and all(map(is_whole, found.files)):
            return CheckerFiles(folder=folder)
    offered = [spec for spec in offered if spec.tasks]
    if any(spec.demo is None for spec in offered):
        return None
    demo = next((spec for spec in offered if spec.demo == _DEMO), None)
    return None if demo is None else CheckerFiles(folder=demo.folder, demo=demo.demo)


def watched_for_checkers(models: Path) -> Iterator[Path]:
    """Whatever changes the answer when it changes."""
    for folder in _folders(models, marked=False):
        yield from (folder, folder / CHECKER, folder / PROCESSOR, *(folder / CHECKER).glob("*.safetensors"))


def _folders(models: Path, *, marked: bool = True) -> list[Path]:
    """Folders of models, whose names may have an owner in front; ``marked``: those with a checker."""
    found = [path for pattern in ("*", "*/*") for path in models.glob(pattern) if not path.name.startswith(".")]
    return sorted(path for path in found if ((path / CHECKER) if marked else path).is_dir())


def _config(folder: Path) -> Path:
    return folder / CHECKER / "config.json"
