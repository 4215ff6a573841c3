"""Weights beside the models: where a pull puts what ``configs/aux`` names, and what it brings along."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pipelines.auxiliary import find_in
from server.catalog.auxiliary_files import KINDS, AuxiliaryFile
from server.pull.errors import PullError
from server.pull.home import Home, OneFile, OwnFolder
from server.pull.hub import Hub
from server.pull.record import Wish
from server.pull.stage import Progress, pull_files


def find_auxiliary_file(name: str, files: Mapping[str, AuxiliaryFile]) -> AuxiliaryFile | None:
    """The one of this id; case does not matter."""
    wanted = name.strip().lower()
    return next((one for one in files.values() if one.id.lower() == wanted), None)


def auxiliary_home(one: AuxiliaryFile, data: Path) -> Home:
    """Where look-ups find it under its id: ``pipelines.auxiliary``, for the safety checker ``catalog.checker``."""
    kind = KINDS[one.kind]
    if kind is None:
        return OwnFolder(folder=data / "models" / one.id)
    folder = data / kind.value
    if one.source is not None and len(one.source.files or ()) > 1:
        return OwnFolder(folder=folder / one.id, flat=True)
    return OneFile(file=folder / f"{one.id}.safetensors")


def pull_auxiliary(
    one: AuxiliaryFile, files: Mapping[str, AuxiliaryFile], data: Path, progress: Progress, *, update: bool = False
) -> bool:
    """Whether anything came: of it, or of what it needs. Raises ``PullError``."""
    came = [pull_auxiliary(files[name], files, data, progress, update=update) for name in one.needs]
    home = auxiliary_home(one, data)
    if one.source is None:
        _refuse_unconverted(one, home.folder)
        return any(came)
    wish = Wish(
        hub=one.source.hub,
        revision=one.source.revision,
        variant="fp16" if one.source.variant is None else one.source.variant,
        patterns=tuple(one.source.files or ()),
        needs_all=True,
    )
    return pull_files(one.id, wish, home, Hub(), progress, update=update) or any(came)


def _refuse_unconverted(one: AuxiliaryFile, folder: Path) -> None:
    if one.pickle is not None and find_in(folder, one.id) is None:
        raise PullError(
            f"{one.id} is published as a pickle only, which can run code and is never opened by a pull: fetch "
            f"{one.pickle.url}, run ./latentd convert {one.pickle.file}, and put {one.id}.safetensors into {folder}"
        )
