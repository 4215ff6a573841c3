"""A CLIP text encoder for texts of any length, weighted, from any of its layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipelines.emphasis import Section, is_plain, parse, plain
from pipelines.prompt import ENCODE_TEXTS, Embedding, TextEncoder

#: Longer texts are cut: a slot of a lane holds both sides' embeddings, for SDXL in float16 0.3 MiB a chunk each.
MAX_CHUNKS = 32
#: Restoring the mean divides by one; below this share of the mean magnitude it is rounding (a layer norm without bias).
LEAST_MEAN = 1e-3


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """What the encoder reads at once: start token, at most 75 tokens, end token, padding."""

    ids: tuple[int, ...]
    #: As long as ``ids``; None = all one.
    weights: tuple[float, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Reading:
    """A text as an encoder sees it."""

    #: (chunks x 77, width)
    hidden: Tensor
    #: (width,): the first chunk's, never weighted.
    pooled: Tensor


class ClipEncoder(TextEncoder):
    """Reads chunk by chunk. A text without weights that fits one is read exactly as stock diffusers reads it."""

    def __init__(self, tokenizer: Any, model: Any, *, normed: bool, pooled: str = "pooler_output") -> None:
        super().__init__(tokenizer, model)
        #: The final layer norm comes after the layer that is taken (SD1.5), or does not (SDXL).
        self._normed = normed
        #: The model's output that is the pooled text.
        self._pooled = pooled

    @property
    def room(self) -> int:
        """Tokens of text in a chunk."""
        return self.length - 2

    def chunks(self, text: str) -> list[Chunk]:
        """The text's chunks, at least one and at most ``MAX_CHUNKS``."""
        return self._all_chunks(text)[:MAX_CHUNKS]

    def _all_chunks(self, text: str) -> list[Chunk]:
        sections = parse(text)
        if is_plain(sections):
            ids = self._tokenizer(plain(sections), padding="max_length", max_length=self.length, verbose=False)
            if len(ids.input_ids) <= self.length:
                return [Chunk(ids=tuple(ids.input_ids))]
        return [chunk for section in sections for chunk in self._split(section)]

    def _split(self, section: Section) -> list[Chunk]:
        texts = [piece.text for piece in section]
        tokens = self._tokenizer(texts, add_special_tokens=False, verbose=False).input_ids
        pairs = [(token, piece.weight) for piece, part in zip(section, tokens, strict=True) for token in part]
        return [self._chunk(pairs[start : start + self.room]) for start in range(0, max(len(pairs), 1), self.room)]

    def _chunk(self, pairs: Sequence[tuple[int, float]]) -> Chunk:
        tokenizer, padding = self._tokenizer, self.room - len(pairs)
        ids = (tokenizer.bos_token_id, *(token for token, _ in pairs), tokenizer.eos_token_id)
        weights = (1.0, *(weight for _, weight in pairs), 1.0)
        if all(weight == 1.0 for weight in weights):
            return Chunk(ids=ids + (tokenizer.pad_token_id,) * padding)
        return Chunk(ids=ids + (tokenizer.pad_token_id,) * padding, weights=weights + (1.0,) * padding)

    def is_cut(self, text: str) -> bool:
        """The text has more chunks than are read."""
        # No token is shorter than a byte, so that most texts need not be counted.
        if len(text.encode("utf-8", "replace")) // self.room + text.count("BREAK") < MAX_CHUNKS:
            return False
        return len(self._all_chunks(text)) > MAX_CHUNKS

    @property
    def most_tokens(self) -> int:
        """See ``TextEncoder.most_tokens``."""
        return MAX_CHUNKS * self.room

    def read(self, texts: Sequence[Sequence[Chunk]], *, clip_skip: int) -> list[Reading]:
        """Each text from the layer counted from the last one, which is 1; an encoder with fewer gives its first."""
        flat = [chunk for chunks in texts for chunk in chunks]
        parts = [
            self._forward(flat[start : start + ENCODE_TEXTS], clip_skip) for start in range(0, len(flat), ENCODE_TEXTS)
        ]
        hidden = torch.cat([part for part, _ in parts]) if len(parts) > 1 else parts[0][0]
        pooled = torch.cat([part for _, part in parts]) if len(parts) > 1 else parts[0][1]
        readings: list[Reading] = []
        start = 0
        for chunks in texts:
            end = start + len(chunks)
            readings.append(Reading(hidden=hidden[start:end].flatten(0, 1), pooled=pooled[start]))
            start = end
        return readings

    def _forward(self, chunks: Sequence[Chunk], clip_skip: int) -> tuple[Tensor, Tensor]:
        ids = torch.tensor([chunk.ids for chunk in chunks], device=self.model.device)
        last = self._normed and clip_skip == 1
        out = self.model(ids, output_hidden_states=not last)
        hidden = out.last_hidden_state if last else self._layer(out.hidden_states, clip_skip)
        if any(chunk.weights is not None for chunk in chunks):
            hidden = torch.stack([weigh(state, chunk.weights) for state, chunk in zip(hidden, chunks, strict=True)])
        return hidden, out[self._pooled]

    def _layer(self, states: Sequence[Tensor], clip_skip: int) -> Tensor:
        state = states[-min(clip_skip, len(states))]
        # transformers 5 has the norm on the model itself; SDXL's second encoder, which has it elsewhere, needs none.
        normed: Tensor = self.model.final_layer_norm(state) if self._normed else state
        return normed


def weigh(hidden: Tensor, weights: Sequence[float] | None) -> Tensor:
    """(tokens, width) times (tokens,), scaled back to the mean it had, as AUTOMATIC1111 does it."""
    if weights is None:
        return hidden
    states = hidden.float()
    weighted = states * torch.tensor(weights, device=hidden.device)[:, None]
    before, after = states.mean(), weighted.mean()
    sure = (before.abs() > LEAST_MEAN * states.abs().mean()) & (after.abs() > LEAST_MEAN * weighted.abs().mean())
    restored = torch.where(sure, before / torch.where(sure, after, 1.0), 1.0)
    return (weighted * restored).to(hidden.dtype)


def equally_long(
    positive: Embedding, negative: Embedding, empty: Callable[[], Embedding]
) -> tuple[Embedding, Embedding]:
    """Both sides of a row, the shorter one continued with empty chunks: a lane has one text length."""
    longest = max(positive["text"].shape[0], negative["text"].shape[0])
    return _continued(positive, longest, empty), _continued(negative, longest, empty)


def _continued(embedding: Embedding, length: int, empty: Callable[[], Embedding]) -> Embedding:
    text = embedding["text"]
    if text.shape[0] == length:
        return embedding
    more = empty()["text"]
    return {**embedding, "text": torch.cat((text, more.repeat((length - text.shape[0]) // more.shape[0], 1)))}
