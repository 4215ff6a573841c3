"""LoRAs per row: found by name, read, fitted to a model's networks, and laid over single rows of their forwards."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from pipelines.errors import InvalidRequest
from pipelines.lora_bank import LoraBank, LoraStack, Overlay
from pipelines.lora_file import DENOISER, LoraPair, read_lora
from pipelines.lora_layers import LayerNames, encoder_names, fit, layer_names
from pipelines.lora_memory import LoraMemory
from pipelines.lru import BytesLru
from pipelines.shared import SharedComponents, identity

#: Name -> file; None when there is none of this name, or none that is complete.
FindLora = Callable[[str], Path | None]

#: Bytes of files that are kept in the host's memory once read.
FILES_BYTES = 1_000_000_000


@dataclass(frozen=True, kw_only=True, eq=False)
class Laid:
    """What a request's LoRAs are for this model."""

    #: None: the denoiser is as it is.
    stack: LoraStack | None = None
    #: By text encoder; an encoder without is as it is.
    texts: Mapping[str, Overlay] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class _Lora:
    #: Component -> layer -> pair.
    parts: Mapping[str, Mapping[str, LoraPair]]
    warnings: tuple[str, ...]

    @property
    def bytes(self) -> int:
        pairs = (pair for part in self.parts.values() for pair in part.values())
        return sum(pair.down.nbytes + pair.up.nbytes for pair in pairs)


class Loras:
    """What LoRAs do to one model."""

    def __init__(
        self,
        network: nn.Module,
        originals: LayerNames,
        encoders: Mapping[str, nn.Module],
        *,
        device: torch.device,
        find: FindLora,
        shared: SharedComponents | None,
        memory: LoraMemory,
    ) -> None:
        """``originals``: the original implementation's names of the denoiser's layers, beside diffusers' own.

        ``encoders``: the text encoders, by their folders' names.
        """
        self._find = find

        def bank(one: nn.Module) -> LoraBank:
            def make() -> LoraBank:
                return LoraBank(one, device, memory)

            # A network that several models share has one bank: its layers must not be adapted twice.
            found: LoraBank = make() if shared is None else shared.get(("loras", id(one)), make)
            return found

        self.banks = {DENOISER: bank(network), **{name: bank(encoder) for name, encoder in encoders.items()}}
        self._names: dict[str, LayerNames] = {
            name: layer_names(one.layers, originals) if name == DENOISER else encoder_names(one.layers)
            for name, one in self.banks.items()
        }
        self._read: BytesLru[_Lora] = BytesLru(FILES_BYTES, lambda lora: lora.bytes)

    @property
    def bank(self) -> LoraBank:
        """The denoiser's."""
        return self.banks[DENOISER]

    def lay(self, wanted: Sequence[tuple[str | Path, float]], model: str) -> Laid:
        """(name or file, strength) in order -> what is laid over a row and its texts.

        Raises InvalidRequest, with the LoRA's name, for one that is unknown, of another kind of model, or of a kind
        that is not supported. A strength of 0 leaves no trace, to the bit.
        """
        loaded = [(*self._load(name, model), strength) for name, strength in wanted]
        stacks: dict[str, LoraStack] = {}
        for component in self.banks:
            having = [
                (key, lora.parts[component], strength) for key, lora, strength in loaded if component in lora.parts
            ]
            used = [one for one in having if one[2]]
            if used:
                keys = tuple((key, strength) for key, _, strength in used)
                stacks[component] = LoraStack(key=keys, parts=[(part, strength) for _, part, strength in used])
        return Laid(
            stack=stacks.pop(DENOISER, None),
            texts={name: Overlay(bank=self.banks[name], stack=stack) for name, stack in stacks.items()},
            warnings=tuple(dict.fromkeys(text for _, lora, _ in loaded for text in lora.warnings)),
        )

    def _load(self, wanted: str | Path, model: str) -> tuple[Hashable, _Lora]:
        if isinstance(wanted, Path):
            path, name = wanted, wanted.stem
        else:
            found_path, name = self._find(wanted), wanted
            if found_path is None:
                raise InvalidRequest(f"LoRA not found: {name[:100]}", field="loras")
            path = found_path
        try:
            key = identity([path])
        except OSError as error:
            raise InvalidRequest(f"LoRA not found: {name[:100]}", field="loras") from error
        found = self._read.get(key)
        if found is None:
            found = self._fitted(path, name, model)
            self._read.put(key, found)
        return key, found

    def _fitted(self, path: Path, name: str, model: str) -> _Lora:
        """Read and fitted; what the model has no layer for is left out, unless that is more than half."""
        file = read_lora(path, name)
        parts: dict[str, dict[str, LoraPair]] = {}
        unknown: dict[str, list[str]] = {}
        for component, pairs in file.parts.items():
            layers = self.banks[component].layers if component in self.banks else {}
            names = self._names.get(component, {})
            fitted, unknown[component] = fit(pairs, layers, names, name=name, model=model)
            if fitted:
                parts[component] = fitted
        skipped = [key for keys in unknown.values() for key in keys]
        count = sum(map(len, file.parts.values()))
        if not count:
            raise InvalidRequest(f"LoRA {name} has nothing for {model}", field="loras")
        # Text encoders are much alike: a denoiser of another kind must not pass for their sake.
        most = len(file.parts.get(DENOISER, ()))
        if 2 * len(skipped) > count or 2 * len(unknown.get(DENOISER, ())) > most:
            raise InvalidRequest(
                f"LoRA {name} is not for {model}, which has no layer {skipped[0][:100]}", field="loras"
            )
        return _Lora(parts=parts, warnings=tuple(_left_out(name, len(skipped), count, file.has_embeddings)))


def _left_out(name: str, skipped: int, count: int, has_embeddings: bool) -> Iterator[str]:
    if skipped:
        yield f"LoRA {name}: {skipped} of its {count} layers were skipped, which the model does not have."
    if has_embeddings:
        yield f"LoRA {name}: its textual inversions were not used."
