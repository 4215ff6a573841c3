"""What every diffusers family does first and last when it is loaded."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from pipelines.checkpoint import Checkpoint
from pipelines.device import pick_dtype
from pipelines.host import Host
from pipelines.model import ModelSpec
from pipelines.placement import Placement


class Opening:
    """A model's checkpoint, opened for a host; BrokenCheckpoint if it is not of one of ``classes``."""

    def __init__(self, spec: ModelSpec, host: Host, classes: Collection[str]) -> None:
        self._spec = spec
        self._host = host
        self._placement = Placement(spec.offload, host.device)
        self.checkpoint = Checkpoint.open(
            spec,
            dtype=pick_dtype(spec.dtype, host.device),
            device=self._placement.loading_device,
            shared=host.shared_for(spec.offload),
        )
        self.checkpoint.check_class(classes)

    def shared_arguments(self) -> dict[str, Any]:
        """Of ``DiffusionPipeline``'s constructor, all but what a family must say itself."""
        return {
            "scheduler_config": self.checkpoint.scheduler_config(),
            "scheduler": self._spec.scheduler,
            "dtype": self.checkpoint.dtype,
            "placement": self._placement,
            "slots": self._host.slots,
            "read_input": self._host.read_input,
            "find_auxiliary": self._host.find_auxiliary,
            "components": self._host.shared_for(self._spec.offload),
        }
