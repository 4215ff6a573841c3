"""Pictures that rows have as prompts, in slots: a denoiser's cross-attentions attend to their entry's too.

What a picture becomes does not change from step to step: a slot holds the keys and values that each layer has for its
tokens, made when the first row of it entered. So a forward needs no adapter's weights, and rows with different pictures
and different adapters share it: out = attention to the text + scale x attention to the picture. Slot 0 is zeros, and
entries in it keep the first term bit for bit.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from pipelines.ip_adapter_file import TOKENS
from pipelines.keyed_slots import KeyedSlots

#: Pictures that are kept although no row uses them; one takes 0.8 MB for SD1.5 and 5 MB for SDXL in 16 bits.
MAX_IDLE = 16
#: Slots that are added at a time.
GROWTH = 4


@dataclass
class _Now:
    """The forward that is running."""

    #: (entries, TOKENS, keys and values of all layers); None: no entry has a picture.
    values: Tensor | None = None
    #: (entries, 1, 1) float32 and bool.
    scale: Tensor | None = None
    active: Tensor | None = None


class PicturedAttention:
    """A cross-attention's processor: diffusers' ``AttnProcessor2_0``, to the bit where no entry has a picture."""

    def __init__(self, now: _Now, start: int, original: Any) -> None:
        # Not the layer itself, which holds this: a cycle would keep a dropped model's memory.
        self._now = now
        self._start = start
        self.original = original

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """See diffusers' ``Attention.forward``; hidden_states (entries, places, width)."""
        now = self._now
        if now.values is None or now.scale is None or now.active is None:
            out: Tensor = self.original(attn, hidden_states, encoder_hidden_states, attention_mask, temb)
            return out
        assert attention_mask is None, "places and tokens of rows are never masked"
        query, key, value = attn.to_q(hidden_states), attn.to_k(encoder_hidden_states), attn.to_v(encoder_hidden_states)
        start, width = self._start, key.shape[-1]
        keys, values = now.values[..., start : start + width], now.values[..., start + width : start + 2 * width]
        text = _attend(query, key, value, attn.heads)
        # float32 for the scale's sake, which 16 bits would round.
        both = (text + now.scale * _attend(query, keys, values, attn.heads)).to(text.dtype)
        shown: Tensor = attn.to_out[1](attn.to_out[0](torch.where(now.active, both, text)))
        return shown


def _attend(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """(entries, places, width), and (entries, tokens, width) twice -> (entries, places, width)."""
    q, k, v = (one.view(*one.shape[:2], heads, -1).transpose(1, 2) for one in (query, key, value))
    return scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(query.shape)


def _restore(layers: list[weakref.ref[Any]]) -> None:
    for layer in layers:
        attention = layer()
        if attention is not None and isinstance(attention.processor, PicturedAttention):
            attention.set_processor(attention.processor.original)


class IpAdapterBank:
    """The slots of one denoiser; models that share the denoiser share its bank. The device thread alone uses it."""

    def __init__(self, network: Any, *, dtype: torch.dtype, device: torch.device) -> None:
        names = [name.removesuffix(".processor") for name in network.attn_processors if ".attn2." in name]
        attentions: list[Any] = [network.get_submodule(name) for name in names]
        #: (outputs, width of texts) of each cross-attention's keys, in diffusers' order.
        self.layers: list[tuple[int, int]] = [tuple(one.to_k.weight.shape) for one in attentions]
        self._now = _Now()
        self._slots = KeyedSlots(growth=GROWTH, max_idle=MAX_IDLE)
        width = sum(2 * outputs for outputs, _ in self.layers)
        #: (slots, TOKENS, keys and values of all layers)
        self.values = torch.zeros(1, TOKENS, width, dtype=dtype, device=device)
        self._install(attentions)

    def _install(self, attentions: list[Any]) -> None:
        start = 0
        for attention, (outputs, _) in zip(attentions, self.layers, strict=True):
            attention.set_processor(PicturedAttention(self._now, start, attention.processor))
            start += 2 * outputs
        # A denoiser may outlive its bank, in another model.
        weakref.finalize(self, _restore, [weakref.ref(one) for one in attentions])

    @property
    def bytes(self) -> int:
        """What all slots take."""
        return self.values.nbytes

    @property
    def users(self) -> int:
        """How often slots have been taken and not given back."""
        return self._slots.users

    def __len__(self) -> int:
        """Pictures that are held."""
        return len(self._slots)

    @torch.inference_mode()
    def take(self, key: Hashable, values: Callable[[], Tensor]) -> int:
        """The slot of this key, filled with ``IpAdapter.values`` unless it is there; see ``KeyedSlots.take``."""

        def write(slot: int) -> None:
            made = values()
            if len(self.values) < self._slots.capacity:
                grown = self.values.new_zeros(self._slots.capacity, *self.values.shape[1:])
                grown[: len(self.values)] = self.values
                self.values = grown
            self.values[slot].copy_(made)

        return self._slots.take(key, write)

    def give(self, slot: int) -> None:
        """The counterpart of ``take``; 0 is nobody's."""
        self._slots.give(slot)

    @contextlib.contextmanager
    def using(self, slots: Tensor, scales: Tensor) -> Iterator[None]:
        """Forwards inside have these slots, (entries,) int32, and scales, (entries,) float32."""
        now = self._now
        now.values = self.values.index_select(0, slots)
        now.scale, now.active = scales.view(-1, 1, 1), (slots > 0).view(-1, 1, 1)
        try:
            yield
        finally:
            now.values = now.scale = now.active = None
