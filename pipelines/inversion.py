"""Textual inversions: vectors that a text encoder reads in place of a word (Gal et al. 2022, arXiv 2208.01618).

Layouts: diffusers' (the word -> its vectors), AUTOMATIC1111's (``emb_params``), and that for both encoders of SDXL
(``clip_l`` and ``clip_g``).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from pipelines.emphasis import parse, plain
from pipelines.errors import BrokenCheckpoint, InvalidRequest
from pipelines.lru import BytesLru
from pipelines.shared import identity
from pipelines.weight_file import WeightFile

#: Name -> file; None when there is none of this name, or none that is complete.
FindInversion = Callable[[str], Path | None]

#: Bytes of files that are kept once read; one of 8 vectors for SD1.5 takes 24 KiB.
FILES_BYTES = 64_000_000
#: Names of tensors that say which encoder they are for, and not which word they stand for.
_ENCODERS = {
    "emb_params": "text_encoder",
    "clip_l": "text_encoder",
    "clip_g": "text_encoder_2",
    "text_encoders_0": "text_encoder",
    "text_encoders_1": "text_encoder_2",
}


@dataclass(frozen=True, kw_only=True)
class Inversion:
    """A word and the vectors that are read in its place."""

    #: Equal for equal contents under equal words.
    key: Hashable
    #: What stands for it in a text: the file's name and, where the file has one, the word in it.
    words: tuple[str, ...] = field(compare=False)
    #: Text encoder -> (vectors, width).
    vectors: Mapping[str, Tensor] = field(compare=False, repr=False)


def split_at(text: str, inversions: Sequence[Inversion]) -> Iterator[str | Inversion]:
    """The text in order, the inversions' words replaced by them: as whole words, whatever their case."""
    words = [(word, one) for one in inversions for word in one.words]
    # Of words that begin at one place the longest is meant.
    words.sort(key=lambda pair: len(pair[0]), reverse=True)
    start = 0
    if words:
        pattern = "|".join(f"({_bounded(word)})" for word, _ in words)
        for match in re.finditer(pattern, text, re.IGNORECASE):
            if match.start() > start:
                yield text[start : match.start()]
            yield words[(match.lastindex or 1) - 1][1]
            start = match.end()
    if start < len(text):
        yield text[start:]


def _bounded(word: str) -> str:
    before = r"(?<!\w)" if re.match(r"\w", word) else ""
    after = r"(?!\w)" if re.search(r"\w$", word) else ""
    return before + re.escape(word) + after


def occurring(text: str, inversions: Sequence[Inversion]) -> tuple[Inversion, ...]:
    """Those whose words are in a prompt, in their order."""
    if not inversions:
        return ()
    found = {part for part in split_at(plain(parse(text)), inversions) if isinstance(part, Inversion)}
    return tuple(one for one in inversions if one in found)


class Inversions:
    """What one model can read."""

    def __init__(self, widths: Mapping[str, int], *, most: int, find: FindInversion) -> None:
        """``widths``: of the vectors that each text encoder reads; ``most``: vectors that a text has room for."""
        self._widths = widths
        self._most = most
        self._find = find
        self._read: BytesLru[Inversion] = BytesLru(
            FILES_BYTES, lambda one: sum(tensor.nbytes for tensor in one.vectors.values())
        )

    def get(self, name: str, model: str) -> Inversion:
        """The inversion of this name; InvalidRequest if there is none, or if it is for another kind of model."""
        path = self._find(name)
        try:
            key = None if path is None else (path.stem, identity([path]))
        except OSError:
            key = None
        if path is None or key is None:
            raise InvalidRequest(f"Embedding not found: {name[:100]}", field="embeddings")
        found = self._read.get(key)
        if found is None:
            words, vectors = _read(path, name)
            self._check(vectors, name, model)
            found = Inversion(key=key, words=words, vectors=vectors)
            self._read.put(key, found)
        return found

    def _check(self, vectors: Mapping[str, Tensor], name: str, model: str) -> None:
        found = {encoder: tensor.shape[1] for encoder, tensor in vectors.items()}
        if found != self._widths:
            shown, wanted = (" and ".join(map(str, widths.values())) for widths in (found, self._widths))
            raise InvalidRequest(
                f"Embedding {name} is not for {model}: its vectors have {shown} numbers, not {wanted}",
                field="embeddings",
            )
        count = max(map(len, vectors.values()))
        if count > self._most:
            raise InvalidRequest(
                f"Embedding {name} has {count} vectors, and a text has room for {self._most}", field="embeddings"
            )


def _read(path: Path, name: str) -> tuple[tuple[str, ...], dict[str, Tensor]]:
    """Words and vectors of a file, float32."""
    try:
        file = WeightFile.open(path, name)
        named = [key for key in file.tensors if key in _ENCODERS]
        if not named and len(file.tensors) == 1:
            # diffusers' layout: the tensor is called what it stands for.
            named = list(file.tensors)
        # Nothing else is read: whole checkpoints come to lie among embeddings, too.
        with file.reading(name) as opened:
            tensors = {key: opened.get_tensor(key) for key in named}
    except BrokenCheckpoint as error:
        raise InvalidRequest(
            f"Embedding {name} cannot be read: it is no sound .safetensors file", field="embeddings"
        ) from error
    encoders = {_ENCODERS.get(key, "text_encoder"): tensor for key, tensor in tensors.items()}
    words = [path.stem, *(key for key in tensors if key not in _ENCODERS)]
    if not encoders or any(tensor.dim() not in (1, 2) or not tensor.numel() for tensor in encoders.values()):
        raise InvalidRequest(f"Embedding {name} is not supported: it holds no vectors of a word", field="embeddings")
    vectors = {key: tensor.float().reshape(-1, tensor.shape[-1]) for key, tensor in sorted(encoders.items())}
    return tuple(dict.fromkeys(word.strip() for word in words if word.strip())), vectors
