"""What a model is loaded into."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from pipelines.auxiliary import FindAuxiliary, find_nothing
from pipelines.extras import Extras
from pipelines.inputs import ReadInput
from pipelines.lora_memory import LoraMemory
from pipelines.model import Offload
from pipelines.shared import SharedComponents


@dataclass(frozen=True, kw_only=True)
class Host:
    """One engine's surroundings, the same for all of its models."""

    device: torch.device
    #: Rows of a group that may be on the device at a time.
    slots: int
    #: None where there are no input pictures.
    read_input: ReadInput | None = None
    #: LoRAs and the like.
    find_auxiliary: FindAuxiliary = find_nothing
    #: Modules that models of the same files share; None: nothing is shared.
    shared: SharedComponents | None = None
    #: What LoRAs may take on the device, for all models together.
    lora_memory: LoraMemory = field(default_factory=LoraMemory)
    #: Where models count what comes beside their weights.
    extras: Extras = field(default_factory=Extras)

    def shared_for(self, offload: Offload) -> SharedComponents | None:
        """Modules that come and go with one model's use cannot be another's."""
        return self.shared if offload is Offload.NONE else None
