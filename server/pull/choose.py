"""Which files of a repository a model needs."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

from server.pull.errors import PullError

#: Configurations, tokenizers, weights. Whatever else a pattern matches is left alone: nothing that could ever run.
_SUFFIXES = frozenset({".json", ".txt", ".model", ".safetensors"})
_WEIGHTS = ".safetensors"
_INDEX = ".safetensors.index"
_SHARD = re.compile(r"-\d{5}-of-\d{5}")


def choose(names: Collection[str], patterns: Iterable[str], *, variant: str, needs_all: bool) -> list[str]:
    """The names that match; of weights in several precisions those of ``variant``, else those without one.

    ``*`` does not reach into folders. Raises ``PullError`` for a name that leads out of the folder and, with
    ``needs_all``, for a pattern that matches nothing.
    """
    matched: dict[str, None] = {}
    for pattern in patterns:
        found = [name for name in sorted(names) if _matches(name, pattern)]
        if needs_all and not found:
            raise PullError(f"the repository has no file {pattern}")
        matched |= dict.fromkeys(found)
    for name in matched:
        _refuse_unsafe(name)
    return _one_precision([name for name in matched if PurePosixPath(name).suffix in _SUFFIXES], variant)


def _matches(name: str, pattern: str) -> bool:
    return name.count("/") == pattern.count("/") and fnmatchcase(name, pattern)


def _refuse_unsafe(name: str) -> None:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or path.parts[0].startswith("."):
        raise PullError(f"the repository has a file {name[:100]!r}, which does not stay in its folder")


def _one_precision(names: list[str], variant: str) -> list[str]:
    """Drops the weights of other precisions, shards beside a whole file, and the indexes of shards that are dropped."""
    # (folder, stem) -> variant -> names: unet/diffusion_pytorch_model -> fp16 -> …
    groups: dict[tuple[str, str], dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for name in names:
        if name.endswith(_WEIGHTS):
            path = PurePosixPath(name)
            stem, _, found = _SHARD.sub("", path.name.removesuffix(_WEIGHTS)).partition(".")
            groups[str(path.parent), stem][found].append(name)
    kept: set[str] = set()
    sharded: set[tuple[str, str, str]] = set()
    for (folder, stem), variants in groups.items():
        taken = next(one for one in (variant, "", *sorted(variants)) if one in variants)
        whole = [name for name in variants[taken] if not _SHARD.search(name)]
        kept.update(whole or variants[taken])
        if not whole:
            sharded.add((folder, stem, taken))
    return [name for name in names if name in kept or _is_wanted_text(name, sharded)]


def _is_wanted_text(name: str, sharded: Collection[tuple[str, str, str]]) -> bool:
    """A file that holds no weights; an index only if its shards are taken."""
    if name.endswith(_WEIGHTS):
        return False
    if _INDEX not in name:
        return True
    # model.safetensors.index.json, model.safetensors.index.fp16.json, model.fp16.safetensors.index.json
    path = PurePosixPath(name)
    front, _, back = path.name.partition(_INDEX)
    stem, _, early = front.partition(".")
    late = back.removesuffix(".json").removeprefix(".")
    return (str(path.parent), stem, early or late) in sharded
