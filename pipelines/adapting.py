"""What a request lays over its model: LoRAs over the networks, textual inversions into its texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from pipelines.auxiliary import AuxiliaryKind, FindAuxiliary
from pipelines.clip import ClipEncoder
from pipelines.errors import BrokenCheckpoint, InvalidRequest
from pipelines.family import Family
from pipelines.inversion import Inversion, Inversions, occurring
from pipelines.lora import Laid, Loras
from pipelines.lora_bank import LoraStack
from pipelines.lora_memory import LoraMemory
from pipelines.prompt import Reading
from pipelines.request import ImageRequest
from pipelines.shared import SharedComponents


@dataclass(frozen=True, kw_only=True)
class Adapted:
    """What a request has over its model."""

    reading: Reading
    #: Over the denoiser; None: nothing.
    stack: LoraStack | None = None
    warnings: tuple[str, ...] = ()


class Adapting:
    """One model's. Until the first request that asks for something the networks are untouched."""

    def __init__(
        self,
        *,
        device: torch.device,
        find: FindAuxiliary,
        shared: SharedComponents | None,
        memory: LoraMemory,
        always: Sequence[Path],
    ) -> None:
        """``always``: files of LoRAs that belong to the model, laid over all that it draws."""
        self._device = device
        self._find = find
        self._shared = shared
        self._memory = memory
        self._always = always
        self.loras: Loras | None = None
        self._inversions: Inversions | None = None

    def adapt(self, request: ImageRequest, family: Family) -> Adapted:
        """Raises InvalidRequest, which names what is unknown or for another kind of model, and BrokenCheckpoint."""
        laid = self._lay(request, family)
        inversions = self._named(request, family)
        return Adapted(
            reading=Reading(overlays=laid.texts, inversions=inversions),
            stack=laid.stack,
            warnings=(*laid.warnings, *_unused(request, inversions)),
        )

    def _lay(self, request: ImageRequest, family: Family) -> Laid:
        if not request.loras and not self._always:
            return Laid()
        if self.loras is None:
            self.loras = Loras(
                family.network,
                family.original_layers(),
                {encoder.name: encoder.model for encoder in family.encoders},
                device=self._device,
                find=partial(self._find, AuxiliaryKind.LORA),
                shared=self._shared,
                memory=self._memory,
            )
        own = [(file, 1.0) for file in self._always]
        try:
            # Apart from the client's, who is not to blame for them.
            self.loras.lay(own, request.model)
        except InvalidRequest as error:
            raise BrokenCheckpoint(f"model {request.model}: {error}") from error
        return self.loras.lay([*own, *request.loras], request.model)

    def _named(self, request: ImageRequest, family: Family) -> tuple[Inversion, ...]:
        if not request.embeddings:
            return ()
        if self._inversions is None:
            encoders = [encoder for encoder in family.encoders if isinstance(encoder, ClipEncoder)]
            self._inversions = Inversions(
                {encoder.name: encoder.width for encoder in encoders},
                most=min(encoder.room for encoder in encoders),
                find=partial(self._find, AuxiliaryKind.EMBEDDING),
            )
        return tuple(self._inversions.get(name, request.model) for name in request.embeddings)


def _unused(request: ImageRequest, inversions: Sequence[Inversion]) -> Iterator[str]:
    """A sentence for each that no text of the request names."""
    texts = (request.prompt, request.negative_prompt or "")
    named = {one for text in texts for one in occurring(text, inversions)}
    for one in inversions:
        if one not in named:
            yield f"embedding {one.words[0]} was not used: neither prompt nor negative_prompt has its name."
