"""LoRA stacks in slots: every adapted layer adds to each entry of a forward what the entry's slot says.

A layer holds one pair of matrices per slot, all of one rank, so that a forward with any mixture of stacks is one
batched product per layer: y = base(x) + (x A[slot]) B[slot]. Slot 0 is zeros, and entries in it keep base(x) bit for
bit.
"""

from __future__ import annotations

import contextlib
import weakref
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from pipelines.keyed_slots import KeyedSlots
from pipelines.lora_file import LoraPair
from pipelines.lora_layers import Adaptable, adaptable
from pipelines.lora_memory import LoraMemory

#: Ranks that matrices are padded to; above, multiples of the last.
RANKS = (16, 32, 64, 128, 256)
#: Stacks that are kept although no row uses them.
MAX_IDLE = 16
#: Slots that are added at a time.
GROWTH = 4


@dataclass(frozen=True, kw_only=True)
class LoraStack:
    """What a row has laid over its denoiser, or a text over its encoder: one slot."""

    #: Equal for equal contents and strengths.
    key: Hashable
    #: (layer -> pair, strength), in order.
    parts: Sequence[tuple[Mapping[str, LoraPair], float]] = field(compare=False)

    def matrices(self, layer: str) -> tuple[Tensor, Tensor] | None:
        """The layer's pairs side by side, float32: (rank, inputs, …) and (outputs, rank), strengths in the latter."""
        found = [(part[layer], strength) for part, strength in self.parts if layer in part]
        if not found:
            return None
        downs = [pair.down.float() for pair, _ in found]
        ups = [pair.up.float() * (pair.scale * strength) for pair, strength in found]
        return torch.cat(downs), torch.cat(ups, dim=1)


def padded(rank: int) -> int:
    """The rank that matrices of this rank are stored with."""
    return next((one for one in RANKS if one >= rank), -(-rank // RANKS[-1]) * RANKS[-1])


@dataclass
class _Now:
    """The forward that is running."""

    #: (entries,) int32; None: no entry has a LoRA.
    slots: Tensor | None = None
    #: (entries,) bool.
    active: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.bool))
    #: The slot that all entries have; None: several.
    only: int | None = None


class _Layer(ABC):
    """One adapted layer's matrices, and the forward hook that applies them."""

    def __init__(self, layer: Adaptable, now: _Now, device: torch.device) -> None:
        # Not the layer itself, which holds this as its hook: a cycle would keep a dropped model's memory.
        self._now = now
        self.inner = tuple(layer.weight.shape[1:])
        self._outputs = layer.weight.shape[0]
        self._empty = torch.zeros(0, dtype=layer.weight.dtype, device=device)
        #: (slots, rank, inputs, …)
        self.down = self._empty.new_zeros(0, 0, *self.inner)
        #: (slots, rank, outputs)
        self.up = self._empty.new_zeros(0, 0, self._outputs)
        #: Slot -> the rank of what is in it, padded.
        self._ranks: dict[int, int] = {}

    @property
    def bytes(self) -> int:
        return self.down.nbytes + self.up.nbytes

    def reserve(self, slots: int, rank: int) -> None:
        """Makes room for so many slots of that rank; what is held stays."""
        held, ranks = self.down.shape[:2]
        slots, rank = max(slots, held), max(rank, ranks)
        if (slots, rank) == (held, ranks):
            return
        down = self._empty.new_zeros(slots, rank, *self.inner)
        up = self._empty.new_zeros(slots, rank, self._outputs)
        down[:held, :ranks] = self.down
        up[:held, :ranks] = self.up
        self.down, self.up = down, up

    def write(self, slot: int, matrices: tuple[Tensor, Tensor] | None) -> None:
        """Replaces a slot; None empties it."""
        self.down[slot].zero_()
        self.up[slot].zero_()
        self._ranks[slot] = 0
        if matrices is not None:
            down, up = matrices
            self._ranks[slot] = padded(len(down))
            self.down[slot, : len(down)].copy_(down)
            self.up[slot, : len(down)].copy_(up.T)

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor | None:
        """The forward hook; see ``torch.nn.Module.register_forward_hook``."""
        slots, only = self._now.slots, self._now.only
        # A stack alone is not multiplied by the zeros that it was padded with for others' sake: the last bits of a
        # product depend on its rank, and with them what a reproducible row draws.
        rank = self.down.shape[1] if only is None else self._ranks.get(only, 0)
        if slots is None or not rank:
            return None
        down, up = self.down[:, :rank].index_select(0, slots), self.up[:, :rank].index_select(0, slots)
        change = self._change(inputs[0], down, up)
        active = self._now.active.view(-1, *(1,) * (output.dim() - 1))
        return torch.where(active, output + change.view_as(output), output)

    @abstractmethod
    def _change(self, x: Tensor, down: Tensor, up: Tensor) -> Tensor:
        """x: (entries, …); down, up: per entry. What is added to the output, its elements in the output's order."""


class _Linear(_Layer):
    def _change(self, x: Tensor, down: Tensor, up: Tensor) -> Tensor:
        tokens = x.reshape(len(x), -1, x.shape[-1])
        return torch.bmm(torch.bmm(tokens, down.transpose(1, 2)), up)


class _Convolution(_Layer):
    def __init__(self, layer: nn.Conv2d, now: _Now, device: torch.device) -> None:
        super().__init__(layer, now, device)
        self._options: dict[str, Any] = {
            "stride": layer.stride,
            "padding": layer.padding,
            "dilation": layer.dilation,
        }

    def _change(self, x: Tensor, down: Tensor, up: Tensor) -> Tensor:
        entries, rank = down.shape[:2]
        # One group per entry: each is convolved with its own kernels.
        joined = x.reshape(1, -1, *x.shape[2:])
        inner = nn.functional.conv2d(joined, down.flatten(0, 1), groups=entries, **self._options)
        return torch.bmm(up.transpose(1, 2), inner.view(entries, rank, -1))


def _unhook(handles: list[RemovableHandle]) -> None:
    for handle in handles:
        handle.remove()
    handles.clear()


class LoraBank:
    """The slots of one network; models that share the network share its bank. The device thread alone uses it."""

    def __init__(self, network: nn.Module, device: torch.device, memory: LoraMemory) -> None:
        self.layers = adaptable(network)
        self.device = device
        self._now = _Now()
        self._adapted: dict[str, _Layer] = {}
        self._handles: list[RemovableHandle] = []
        # A network may outlive its bank, in another model.
        weakref.finalize(self, _unhook, self._handles)
        self._slots = KeyedSlots(growth=GROWTH, max_idle=MAX_IDLE)
        self._memory = memory
        memory.add(self)

    @property
    def bytes(self) -> int:
        """What all slots take."""
        return sum(layer.bytes for layer in self._adapted.values())

    @property
    def users(self) -> int:
        """How often slots have been taken and not given back."""
        return self._slots.users

    def __len__(self) -> int:
        """Stacks that are held."""
        return len(self._slots)

    @torch.inference_mode()
    def take(self, stack: LoraStack) -> int:
        """The stack's slot, written unless it is there; it stays until it has been given back as often as taken."""
        try:
            return self._slots.take(stack.key, partial(self._write, stack=stack), may_grow=self._may_grow)
        except BaseException:
            self._let_go()
            raise

    def give(self, slot: int) -> None:
        """The counterpart of ``take``; 0 is nobody's."""
        self._slots.give(slot)
        if slot:
            self._let_go()

    def _may_grow(self) -> bool:
        return self._memory.has_room(self.bytes * GROWTH // self._slots.capacity, self)

    def _let_go(self) -> None:
        """Keeps nothing that nobody uses where there is no room for it."""
        if not self._slots.users and not self._memory.has_room(0, self):
            self.clear()

    @contextlib.contextmanager
    def using(self, slots: Tensor | None, *, only: int | None = None) -> Iterator[None]:
        """Forwards inside have these slots, (entries,) int32; None: no entry has a LoRA.

        ``only``: the slot that all of them are, where it is one.
        """
        self._now.slots, self._now.only = slots, only
        if slots is not None:
            self._now.active = slots > 0
        try:
            yield
        finally:
            self._now.slots = None

    def _write(self, slot: int, stack: LoraStack) -> None:
        touched = {name for part, _ in stack.parts for name in part}
        for name in touched - self._adapted.keys():
            self._adapt(name)
        for name, layer in self._adapted.items():
            matrices = stack.matrices(name)
            layer.reserve(self._slots.capacity, 0 if matrices is None else padded(len(matrices[0])))
            layer.write(slot, matrices)

    def _adapt(self, name: str) -> None:
        layer = self.layers[name]
        kind = _Convolution if isinstance(layer, nn.Conv2d) else _Linear
        adapted = kind(layer, self._now, self.device)  # type: ignore[arg-type]
        # Of rank 0, which takes no memory: forwards stay possible when there is none for the matrices.
        adapted.reserve(self._slots.capacity, 0)
        self._handles.append(layer.register_forward_hook(adapted))
        self._adapted[name] = adapted

    def clear(self) -> None:
        """Forgets all stacks and gives their memory back; nobody may be using one."""
        _unhook(self._handles)
        self._adapted.clear()
        self._slots.clear()


@dataclass(frozen=True, kw_only=True)
class Overlay:
    """A stack, and the bank of the network that it is for."""

    bank: LoraBank = field(compare=False)
    stack: LoraStack


@contextlib.contextmanager
def laid_over(overlays: Sequence[Overlay | None]) -> Iterator[None]:
    """A forward of one network inside has these, one for each entry."""
    bank = next((one.bank for one in overlays if one is not None), None)
    if bank is None:
        yield
        return
    slots: list[int] = []
    try:
        for one in overlays:
            slots.append(0 if one is None else bank.take(one.stack))
        only = slots[0] if len(set(slots)) == 1 else None
        with bank.using(torch.tensor(slots, dtype=torch.int32, device=bank.device), only=only):
            yield
    finally:
        for slot in slots:
            bank.give(slot)
