"""LoRAs per row: found by name, read, fitted to a denoiser, and laid over single rows of its forwards."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from pipelines.errors import InvalidRequest
from pipelines.lora_bank import LoraBank, LoraStack
from pipelines.lora_file import LoraPair, read_lora
from pipelines.lora_layers import LayerNames, fit, layer_names
from pipelines.lru import BytesLru
from pipelines.shared import SharedComponents, identity

#: Name -> file; None when there is none of this name, or none that is complete.
FindLora = Callable[[str], Path | None]

#: Bytes of files that are kept in the host's memory once read.
FILES_BYTES = 1_000_000_000


@dataclass(frozen=True, kw_only=True, eq=False)
class _Lora:
    layers: Mapping[str, LoraPair]
    has_text: bool

    @property
    def bytes(self) -> int:
        return sum(pair.down.nbytes + pair.up.nbytes for pair in self.layers.values())


class Loras:
    """What LoRAs do to one model."""

    def __init__(
        self,
        network: nn.Module,
        originals: LayerNames,
        *,
        device: torch.device,
        find: FindLora,
        shared: SharedComponents | None,
    ) -> None:
        """``originals``: the original implementation's names of layers, beside diffusers' own."""
        self._find = find

        def make() -> LoraBank:
            return LoraBank(network, device)

        # A denoiser that several models share has one bank: its layers must not be adapted twice.
        self.bank = make() if shared is None else shared.get(("loras", id(network)), make)
        self._names = layer_names(self.bank.layers, originals)
        self._read: BytesLru[_Lora] = BytesLru(FILES_BYTES, lambda lora: lora.bytes)

    def stack(self, wanted: Sequence[tuple[str, float]], model: str) -> LoraStack:
        """(name, strength) in order -> what is laid over a row.

        Raises InvalidRequest, with the LoRA's name, for one that is unknown, of another kind of model, or of a kind
        that is not supported. A strength of 0 leaves no trace, to the bit.
        """
        keys: list[tuple[object, float]] = []
        parts: list[tuple[Mapping[str, LoraPair], float]] = []
        warnings: list[str] = []
        for name, strength in wanted:
            key, lora = self._load(name, model)
            if strength:
                keys.append((key, strength))
                parts.append((lora.layers, strength))
            if lora.has_text:
                warnings.append(f"LoRA {name}: its part for the text encoder was not applied.")
        return LoraStack(key=tuple(keys), parts=parts, warnings=tuple(dict.fromkeys(warnings)))

    def _load(self, name: str, model: str) -> tuple[object, _Lora]:
        path = self._find(name)
        if path is None:
            raise InvalidRequest(f"LoRA not found: {name[:100]}", field="loras")
        try:
            key = identity([path])
        except OSError as error:
            raise InvalidRequest(f"LoRA not found: {name[:100]}", field="loras") from error
        found = self._read.get(key)
        if found is None:
            file = read_lora(path, name)
            layers = fit(file, self.bank.layers, self._names, name=name, model=model)
            found = _Lora(layers=layers, has_text=file.has_text)
            self._read.put(key, found)
        return key, found
