"""Texts to embeddings: encoded together, and once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

#: Bytes of embeddings kept per model; an SD1.5 prompt takes 231 KiB in float32.
CACHE_BYTES = 256 * 2**20
#: Texts per forward of a text encoder.
ENCODE_TEXTS = 32


class EmbeddingCache:
    """The embeddings used last, up to a number of bytes."""

    def __init__(self, max_bytes: int = CACHE_BYTES) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._kept: OrderedDict[Hashable, Tensor] = OrderedDict()
        self.hits = 0
        self.misses = 0

    def get(self, key: Hashable) -> Tensor | None:
        """The embedding, or None."""
        found = self._kept.get(key)
        if found is None:
            self.misses += 1
            return None
        self.hits += 1
        self._kept.move_to_end(key)
        return found

    def put(self, key: Hashable, embedding: Tensor) -> None:
        """Keeps an embedding; the ones unused for longest make room."""
        # A clone, because a slice of a batch would keep the whole batch alive.
        self._kept[key] = embedding.clone()
        self._bytes += embedding.nbytes
        while self._bytes > self._max_bytes and len(self._kept) > 1:
            _, oldest = self._kept.popitem(last=False)
            self._bytes -= oldest.nbytes


def encode_texts(
    texts: Sequence[str], encode: Callable[[Sequence[str]], Tensor], cache: EmbeddingCache, *, alone: bool = False
) -> dict[str, Tensor]:
    """Embeddings by text, (tokens, width) each; texts not in the cache go through ``encode`` together.

    ``alone`` encodes each text by itself and keeps it apart: an embedding's last bits depend on its neighbours.
    """
    found: dict[str, Tensor] = {}
    missing: list[str] = []
    for text in dict.fromkeys(texts):
        kept = cache.get((text, alone))
        if kept is None:
            missing.append(text)
        else:
            found[text] = kept
    together = 1 if alone else ENCODE_TEXTS
    for start in range(0, len(missing), together):
        part = missing[start : start + together]
        for text, embedding in zip(part, encode(part), strict=True):
            cache.put((text, alone), embedding)
            found[text] = embedding
    return found


class ClipEncoder:
    """A CLIP tokenizer and text encoder: texts to the last hidden state after the final layer norm."""

    def __init__(self, tokenizer: Any, text_encoder: Any) -> None:
        self._tokenizer = tokenizer
        self._text_encoder = text_encoder

    @property
    def length(self) -> int:
        """Tokens per text, start and end included (77)."""
        return int(self._tokenizer.model_max_length)

    def is_cut(self, text: str) -> bool:
        """The text has more tokens than the encoder reads."""
        # No token is longer than the text it stands for, so that short texts need not be counted.
        if len(text) <= self.length - 2 and text.isascii():
            return False
        ids = self._tokenizer(text, truncation=False, verbose=False).input_ids
        return len(ids) > self.length

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """(texts, tokens, width), in the encoder's dtype; longer texts are cut as stock diffusers cuts them."""
        ids = self._tokenizer(
            list(texts), padding="max_length", max_length=self.length, truncation=True, return_tensors="pt"
        ).input_ids
        encoder = self._text_encoder
        hidden = encoder(ids.to(encoder.device))[0]
        assert isinstance(hidden, torch.Tensor)
        return hidden
