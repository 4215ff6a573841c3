"""What every diffusers family does first and last when it is loaded."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from pipelines.adapting import Adapting
from pipelines.checkpoint import Checkpoint
from pipelines.device import pick_dtype
from pipelines.host import Host
from pipelines.model import ModelSpec
from pipelines.placement import Placement
from pipelines.vae import Vae
from pipelines.vaes import Vaes, dtype_of


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

    def vaes(self, *, upcasts: bool = False) -> Vaes:
        """The checkpoint's VAE, and the way to others; ``upcasts``: see ``vaes.dtype_of``."""
        from diffusers import AutoencoderKL

        dtype = dtype_of(self.checkpoint.read_json("vae/config.json"), self.checkpoint.dtype, upcasts)
        return Vaes(
            Vae(self.checkpoint.load_module("vae", AutoencoderKL, dtype=dtype)),
            self._spec,
            dtype=self.checkpoint.dtype,
            upcasts=upcasts,
            placement=self._placement,
            find=self._host.find_auxiliary,
            shared=self._host.shared_for(self._spec.offload),
            extras=self._host.extras,
        )

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
            "extras": self._host.extras,
            "adapting": Adapting(
                device=self._host.device,
                find=self._host.find_auxiliary,
                shared=self._host.shared_for(self._spec.offload),
                memory=self._host.lora_memory,
                always=self._spec.loras,
            ),
        }
