"""Where the parts of a model lie, and how they come to the device when they are used."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from enum import Enum, auto
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor

from pipelines.model import Offload


class Part(Enum):
    """What is moved as a whole."""

    ENCODERS = auto()
    DENOISER = auto()
    VAE = auto()


#: What stays on the device, by mode.
RESIDENT: dict[Offload, frozenset[Part]] = {
    Offload.NONE: frozenset(Part),
    Offload.ENCODERS: frozenset({Part.DENOISER, Part.VAE}),
    Offload.MODEL: frozenset(),
    Offload.SEQUENTIAL: frozenset(),
}


#: A component's folder -> the part it belongs to.
PARTS = {
    "unet": Part.DENOISER,
    "transformer": Part.DENOISER,
    "vae": Part.VAE,
    "text_encoder": Part.ENCODERS,
    "text_encoder_2": Part.ENCODERS,
}


def resident_components(mode: Offload) -> frozenset[str]:
    """Folders of the components whose weights stay on the device."""
    return frozenset(name for name, part in PARTS.items() if part in RESIDENT[mode])


class Placement:
    """The parts of one model. The device thread alone uses it."""

    def __init__(self, mode: Offload, device: torch.device) -> None:
        self.mode = mode
        self.device = device
        # Weak: a VAE that was loaded for some requests is gone when they and the cache have let go of it.
        self._modules: dict[Part, WeakSet[Any]] = {part: WeakSet() for part in Part}
        #: The part that rests on the device although it does not live there: it may be needed again at once.
        self._visiting: Part | None = None

    @property
    def loading_device(self) -> torch.device:
        """Where weights are read to: not to a device that cannot hold them all."""
        return self.device if self.mode is Offload.NONE else torch.device("cpu")

    def add(self, part: Part, *modules: Any) -> None:
        """Takes modules in for as long as somebody holds them, and puts those that live on the device there."""
        self._modules[part].update(modules)
        if self.mode is Offload.SEQUENTIAL and part is Part.DENOISER:
            from accelerate import cpu_offload

            for module in modules:
                cpu_offload(module, self.device, offload_buffers=True)
        elif part in RESIDENT[self.mode] or part is self._visiting:
            self._move(part, self.device)

    def there(self, tensors: Iterable[Tensor]) -> Iterator[Tensor]:
        """Those that lie on the device."""
        return (one for one in tensors if one.device.type == self.device.type)

    @contextlib.contextmanager
    def using(self, part: Part) -> Iterator[None]:
        """The part is on the device inside; with whole-part modes it stays until another part is used."""
        if part in RESIDENT[self.mode] or (self.mode is Offload.SEQUENTIAL and part is Part.DENOISER):
            yield
            return
        if self._visiting is not part:
            if self._visiting is not None:
                self._move(self._visiting, torch.device("cpu"))
            self._move(part, self.device)
            self._visiting = part
        try:
            yield
        finally:
            if self.mode is Offload.ENCODERS:
                self._move(part, torch.device("cpu"))
                self._visiting = None

    def _move(self, part: Part, device: torch.device) -> None:
        for module in self._modules[part]:
            module.to(device)
        if device.type == "cpu" and self.device.type == "cuda":
            torch.cuda.empty_cache()
