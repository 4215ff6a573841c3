"""What ``configs/aux`` says about weights beside the models: where they come from and what they need."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Annotated, Self

from pydantic import Field, field_validator, model_validator

from pipelines.auxiliary import AuxiliaryKind
from server.catalog.files import Source, StrictTable, read_file
from server.catalog.weights import FAMILY_MARKS, PICKLES
from server.config import ConfigError, nearest

#: A file's ``kind`` -> what it is looked up as; None: the safety checker, which lies with the models.
KINDS: Mapping[str, AuxiliaryKind | None] = MappingProxyType(
    {**{kind.name.lower(): kind for kind in AuxiliaryKind}, "safety_checker": None}
)

#: Names of files and folders; a name may not lead into another folder.
_NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,95}$"


class Pickle(StrictTable):
    """Weights of which nobody publishes safetensors: the operator fetches and converts them."""

    url: str
    licence: str

    @property
    def file(self) -> str:
        """The file's name."""
        return PurePosixPath(self.url).name

    @field_validator("url")
    @classmethod
    def _is_pickle(cls, value: str) -> str:
        if not value.startswith("https://") or PurePosixPath(value).suffix not in PICKLES:
            raise ValueError(f"must be an https:// address of a file that ends in {', '.join(sorted(PICKLES))}")
        return value


class AuxiliaryFile(StrictTable):
    """One file, or folder, of weights beside the models; exactly one of ``source`` and ``pickle`` is there."""

    id: Annotated[str, Field(pattern=_NAME)]
    #: A key of ``KINDS``.
    kind: str
    #: Of the models that it is for; None: of all.
    family: str | None = None
    #: Ids of others without which it does nothing and which need none themselves; a pull brings them along.
    needs: list[str] = Field(default_factory=list)
    #: ``files`` is given. A single one is kept under the id's name, several in a folder of that name.
    source: Source | None = None
    pickle: Pickle | None = None

    @property
    def licence(self) -> str:
        """As the hub names it."""
        origin = self.source or self.pickle
        return "" if origin is None else origin.licence or ""

    @field_validator("kind")
    @classmethod
    def _is_known_kind(cls, value: str) -> str:
        return _known(value, KINDS, "kind")

    @field_validator("family")
    @classmethod
    def _is_known_family(cls, value: str | None) -> str | None:
        return None if value is None else _known(value, FAMILY_MARKS, "family")

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.source is None) == (self.pickle is None):
            raise ValueError("one of [source] and [pickle] is needed")
        if self.source is not None and not self.source.files:
            raise ValueError("source.files is needed")
        return self


def read_auxiliary_files(configs: Path) -> Mapping[str, AuxiliaryFile]:
    """All of ``configs/aux``, by id. Raises ``ConfigError`` with file, key and nearest match."""
    found: dict[str, AuxiliaryFile] = {}
    owners: dict[str, Path] = {}
    for path in sorted((configs / "aux").glob("[!.]*.toml")):
        one = read_file(path, AuxiliaryFile)
        if (other := owners.get(one.id.lower())) is not None:
            raise ConfigError(f"{path}: the name {one.id!r} is taken by {other}")
        owners[one.id.lower()] = path
        found[one.id] = one
    for one in found.values():
        for name in one.needs:
            where = f"{owners[one.id.lower()]}: needs = {name!r}"
            if name not in found:
                raise ConfigError(f"{where} is not in configs/aux{nearest(name, found)}")
            if found[name].needs:
                raise ConfigError(f"{where} needs others itself; name those, too")
    return MappingProxyType(found)


def _known(value: str, known: Mapping[str, object], what: str) -> str:
    if value not in known:
        raise ValueError(f"no such {what}{nearest(value, known)}")
    return value
