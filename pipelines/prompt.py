"""Texts to embeddings: encoded together, and once."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from pipelines.inversion import Inversion, occurring
from pipelines.lora_bank import Overlay, laid_over
from pipelines.lru import BytesLru
from pipelines.request import ImageRequest

#: What a text becomes: name -> tensor without a text axis ("text" (tokens, width), "pooled" (width,) …).
Embedding = Mapping[str, Tensor]

#: Bytes of embeddings kept per model; an SD1.5 prompt takes 231 KiB in float32, a Flux prompt 8 MiB.
CACHE_BYTES = 256 * 2**20
#: Texts per forward of a text encoder.
ENCODE_TEXTS = 32


@dataclass(frozen=True, kw_only=True)
class Wording:
    """A text and all that its embedding depends on."""

    #: As written: weights are part of it.
    text: str
    #: See ``ImageRequest.clip_skip``.
    clip_skip: int = 1
    #: (text encoder, LoRAs laid over it).
    overlays: tuple[tuple[str, Overlay], ...] = ()
    #: Those that the text names.
    inversions: tuple[Inversion, ...] = ()

    @property
    def key(self) -> Hashable:
        """What its embedding is kept by: equal for equal wordings, and without the LoRAs' and inversions' tensors."""
        overlays = tuple((encoder, overlay.stack.key) for encoder, overlay in self.overlays)
        return self.text, self.clip_skip, overlays, tuple(one.key for one in self.inversions)

    def overlay(self, encoder: str) -> Overlay | None:
        """What is laid over that text encoder."""
        return dict(self.overlays).get(encoder)


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How a request's texts are read."""

    #: Text encoder -> LoRAs laid over it.
    overlays: Mapping[str, Overlay] = field(default_factory=dict)
    #: Whatever the request names, in a text or not.
    inversions: tuple[Inversion, ...] = ()

    def wording(self, text: str, *, clip_skip: int = 1) -> Wording:
        """One text, read so."""
        return Wording(
            text=text,
            clip_skip=clip_skip,
            overlays=tuple(self.overlays.items()),
            inversions=occurring(text, self.inversions),
        )


class EmbeddingCache(BytesLru[Embedding]):
    """The embeddings used last."""

    def __init__(self, max_bytes: int = CACHE_BYTES) -> None:
        super().__init__(max_bytes, lambda embedding: sum(value.nbytes for value in embedding.values()))


def encode_texts(
    wordings: Sequence[Wording],
    encode: Callable[[Sequence[Wording], int], Sequence[Embedding]],
    cache: EmbeddingCache,
    *,
    alone: bool = False,
) -> dict[Wording, Embedding]:
    """Embeddings by wording; those not in the cache go through ``encode``, all texts of a clip_skip together.

    ``alone`` encodes each text by itself and keeps it apart: an embedding's last bits depend on its neighbours.
    """
    found: dict[Wording, Embedding] = {}
    missing: dict[int, list[Wording]] = {}
    for wording in dict.fromkeys(wordings):
        kept = cache.get((wording.key, alone))
        if kept is None:
            missing.setdefault(wording.clip_skip, []).append(wording)
        else:
            found[wording] = kept
    together = 1 if alone else ENCODE_TEXTS
    for clip_skip, group in missing.items():
        for start in range(0, len(group), together):
            part = group[start : start + together]
            encoded = encode(part, clip_skip)
            for wording, embedding in zip(part, encoded, strict=True):
                # Clones, because a slice of a batch would keep the whole batch alive.
                found[wording] = {name: value.clone() for name, value in embedding.items()}
                cache.put((wording.key, alone), found[wording])
    return found


class TextEncoder:
    """A tokenizer and its text encoder. Tokenizers are not thread-safe: the device thread alone uses this."""

    def __init__(self, tokenizer: Any, model: Any, *, name: str = "text_encoder", length: int | None = None) -> None:
        self._tokenizer = tokenizer
        self.model = model
        #: Its folder's.
        self.name = name
        #: Tokens per text, special ones included: 77 for CLIP, up to 512 for Flux' T5.
        self.length = int(tokenizer.model_max_length) if length is None else length

    @property
    def most_tokens(self) -> int:
        """Tokens of a text that are read."""
        return self.length - 2

    def is_cut(self, text: str, inversions: Sequence[Inversion] = ()) -> bool:
        """The text has more tokens than the encoder reads."""
        # No token is shorter than a byte, so that short texts need not be counted.
        if len(text.encode("utf-8", "replace")) <= self.length - 2:
            return False
        ids = self._tokenizer(text, truncation=False, verbose=False).input_ids
        return len(ids) > self.length

    def cuts(self, request: ImageRequest, inversions: Sequence[Inversion] = ()) -> tuple[str, ...]:
        """A warning for each text of the request that is longer than what is read."""
        texts = (("prompt", request.prompt), ("negative_prompt", request.negative_prompt or ""))
        return tuple(
            f"{name} was cut to its first {self.most_tokens} tokens"
            for name, text in texts
            if self.is_cut(text, inversions)
        )

    def __call__(self, wordings: Sequence[Wording]) -> Any:
        """The encoder's output; longer texts are cut as stock diffusers cuts them."""
        texts = [one.text for one in wordings]
        ids = self._tokenizer(
            texts, padding="max_length", max_length=self.length, truncation=True, return_tensors="pt"
        ).input_ids
        with laid_over([one.overlay(self.name) for one in wordings]):
            return self.model(ids.to(self.model.device))
