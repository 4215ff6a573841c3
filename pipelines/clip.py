"""A CLIP text encoder for texts of any length, weighted, from any of its layers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pipelines.emphasis import Section, is_plain, parse, plain
from pipelines.inversion import Inversion, split_at
from pipelines.lora_bank import Overlay, laid_over
from pipelines.prompt import ENCODE_TEXTS, Embedding, TextEncoder

#: Longer texts are cut: a slot of a lane holds both sides' embeddings, for SDXL in float16 0.3 MiB a chunk each.
MAX_CHUNKS = 32
#: Restoring the mean divides by one; below this share of the mean magnitude it is rounding (a layer norm without bias).
LEAST_MEAN = 1e-3
#: The id where an inversion's vector is read. The lowest, because old configurations find the end of a text as the
#: place of the highest.
PLACEHOLDER = 0


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """What the encoder reads at once: start token, at most 75 tokens, end token, padding."""

    ids: tuple[int, ...]
    #: As long as ``ids``; None = all one.
    weights: tuple[float, ...] | None = None
    #: (place, vector) that is read there instead of the id's.
    vectors: tuple[tuple[int, Tensor], ...] = field(default=(), compare=False)


class _Token(NamedTuple):
    id: int
    weight: float
    #: Of a textual inversion.
    vector: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Hidden:
    """A text as an encoder sees it."""

    #: (chunks x 77, width)
    hidden: Tensor
    #: (width,): the first chunk's, never weighted.
    pooled: Tensor


class ClipEncoder(TextEncoder):
    """Reads chunk by chunk. A text without weights that fits one is read exactly as stock diffusers reads it."""

    def __init__(
        self, tokenizer: Any, model: Any, *, normed: bool, pooled: str = "pooler_output", name: str = "text_encoder"
    ) -> None:
        super().__init__(tokenizer, model, name=name)
        #: The final layer norm comes after the layer that is taken (SD1.5), or does not (SDXL).
        self._normed = normed
        #: The model's output that is the pooled text.
        self._pooled = pooled

    @property
    def room(self) -> int:
        """Tokens of text in a chunk."""
        return self.length - 2

    @property
    def width(self) -> int:
        """Numbers in the vector of a token."""
        return int(self.model.get_input_embeddings().embedding_dim)

    def chunks(self, text: str, inversions: Sequence[Inversion] = ()) -> list[Chunk]:
        """The text's chunks, at least one and at most ``MAX_CHUNKS``."""
        return self._all_chunks(text, inversions)[:MAX_CHUNKS]

    def _all_chunks(self, text: str, inversions: Sequence[Inversion]) -> list[Chunk]:
        sections = parse(text)
        if is_plain(sections) and not inversions:
            ids = self._tokenizer(plain(sections), padding="max_length", max_length=self.length, verbose=False)
            if len(ids.input_ids) <= self.length:
                return [Chunk(ids=tuple(ids.input_ids))]
        return [chunk for section in sections for chunk in self._split(section, inversions)]

    def _split(self, section: Section, inversions: Sequence[Inversion]) -> list[Chunk]:
        chunks: list[list[_Token]] = [[]]
        for tokens in self._tokens(section, inversions):
            if len(chunks[-1]) + len(tokens) > self.room:
                chunks.append([])
            chunks[-1] += tokens
        return [self._chunk(tokens) for tokens in chunks]

    def _tokens(self, section: Section, inversions: Sequence[Inversion]) -> Iterator[list[_Token]]:
        """What must not be torn apart: single tokens, and all vectors of an inversion."""
        parts = [(part, piece.weight) for piece in section for part in split_at(piece.text, inversions)]
        texts = [part for part, _ in parts if isinstance(part, str)]
        spelled = iter(self._tokenizer(texts, add_special_tokens=False, verbose=False).input_ids if texts else ())
        for part, weight in parts:
            if isinstance(part, str):
                yield from ([_Token(token, weight)] for token in next(spelled))
            else:
                yield [_Token(PLACEHOLDER, weight, vector) for vector in part.vectors[self.name]]

    def _chunk(self, tokens: Sequence[_Token]) -> Chunk:
        tokenizer, padding = self._tokenizer, self.room - len(tokens)
        ids = (tokenizer.bos_token_id, *(token.id for token in tokens), tokenizer.eos_token_id)
        weights = (1.0, *(token.weight for token in tokens), 1.0)
        weighted = any(weight != 1.0 for weight in weights)
        return Chunk(
            ids=ids + (tokenizer.pad_token_id,) * padding,
            weights=weights + (1.0,) * padding if weighted else None,
            vectors=tuple((place, one.vector) for place, one in enumerate(tokens, start=1) if one.vector is not None),
        )

    def is_cut(self, text: str, inversions: Sequence[Inversion] = ()) -> bool:
        """The text has more chunks than are read."""
        # No token is shorter than a byte, so that most texts need not be counted.
        short = len(text.encode("utf-8", "replace")) // self.room + text.count("BREAK") < MAX_CHUNKS
        if short and not inversions:
            return False
        return len(self._all_chunks(text, inversions)) > MAX_CHUNKS

    @property
    def most_tokens(self) -> int:
        """See ``TextEncoder.most_tokens``."""
        return MAX_CHUNKS * self.room

    def read(
        self, texts: Sequence[Sequence[Chunk]], *, clip_skip: int, overlays: Sequence[Overlay | None]
    ) -> list[Hidden]:
        """Each text from the layer counted from the last one, which is 1; an encoder with fewer gives its first.

        ``overlays``: what is laid over the encoder for each text.
        """
        flat = [(chunk, one) for chunks, one in zip(texts, overlays, strict=True) for chunk in chunks]
        parts = [
            self._forward(flat[start : start + ENCODE_TEXTS], clip_skip) for start in range(0, len(flat), ENCODE_TEXTS)
        ]
        hidden = torch.cat([part for part, _ in parts]) if len(parts) > 1 else parts[0][0]
        pooled = torch.cat([part for _, part in parts]) if len(parts) > 1 else parts[0][1]
        found: list[Hidden] = []
        start = 0
        for chunks in texts:
            end = start + len(chunks)
            found.append(Hidden(hidden=hidden[start:end].flatten(0, 1), pooled=pooled[start]))
            start = end
        return found

    def _forward(self, entries: Sequence[tuple[Chunk, Overlay | None]], clip_skip: int) -> tuple[Tensor, Tensor]:
        chunks = [chunk for chunk, _ in entries]
        ids = torch.tensor([chunk.ids for chunk in chunks], device=self.model.device)
        last = self._normed and clip_skip == 1
        with laid_over([overlay for _, overlay in entries]), self._replaced(chunks):
            out = self.model(ids, output_hidden_states=not last)
        hidden = out.last_hidden_state if last else self._layer(out.hidden_states, clip_skip)
        if any(chunk.weights is not None for chunk in chunks):
            hidden = torch.stack([weigh(state, chunk.weights) for state, chunk in zip(hidden, chunks, strict=True)])
        return hidden, out[self._pooled]

    @contextlib.contextmanager
    def _replaced(self, chunks: Sequence[Chunk]) -> Iterator[None]:
        """A forward of the chunks inside reads the textual inversions' vectors; the vocabulary stays as it is."""
        places = [(row, place, vector) for row, chunk in enumerate(chunks) for place, vector in chunk.vectors]
        if not places:
            yield
            return
        rows, columns, vectors = zip(*places, strict=True)
        where = (torch.tensor(rows), torch.tensor(columns))

        def replace(module: Any, ids: Any, output: Tensor) -> Tensor:
            return output.index_put([one.to(output.device) for one in where], torch.stack(vectors).to(output))

        hook = self.model.get_input_embeddings().register_forward_hook(replace)
        try:
            yield
        finally:
            hook.remove()

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
