"""IP-Adapters of one model: found by id, read, and pictures made into what its denoiser attends to."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipelines.auxiliary import AuxiliaryKind, FindAuxiliary
from pipelines.errors import InvalidRequest
from pipelines.extras import Extras
from pipelines.image_encoder import ImageEncoder
from pipelines.inputs import ReadInput
from pipelines.ip_adapter import IP_ADAPTERS
from pipelines.ip_adapter_bank import IpAdapterBank
from pipelines.ip_adapter_file import IpAdapter, read_ip_adapter
from pipelines.lru import BytesLru
from pipelines.placement import Part, Placement
from pipelines.request import ImageRequest
from pipelines.shared import SharedComponents, identity

#: Bytes of adapters that are kept once read; one for SD1.5 takes 50 to 100 MB, one for SDXL 700 to 850 MB.
ADAPTER_BYTES = 2_000_000_000
#: Bytes of what encoders made of pictures; places take 660 KB in 16 bits, an embedding 2 KB.
FEATURE_BYTES = 64 * 2**20


@dataclass(frozen=True, kw_only=True, eq=False)
class ImagePrompt:
    """A picture as part of a row's prompt."""

    adapter: IpAdapter
    #: Tells the encoder's contents from all others.
    encoder: Hashable
    #: The picture's content hash.
    image: str
    #: What the encoder made of it, and of no picture; the latter for rows with guidance only.
    positive: Tensor
    negative: Tensor | None


class IpAdapters:
    """What IP-Adapters do to one model. Its denoiser is untouched until the first of these is made."""

    def __init__(
        self,
        network: Any,
        *,
        dtype: torch.dtype,
        placement: Placement,
        find: FindAuxiliary,
        read: ReadInput,
        shared: SharedComponents | None,
        extras: Extras,
    ) -> None:
        self._dtype = dtype
        self._placement = placement
        self._find = find
        self._read = read
        self._shared = shared

        def make() -> IpAdapterBank:
            return IpAdapterBank(network, dtype=dtype, device=placement.device)

        # A denoiser that several models share has one bank: its attentions must not be replaced twice.
        self.bank = make() if shared is None else shared.get(("ip_adapters", id(network)), make)
        self._adapters: BytesLru[IpAdapter] = BytesLru(ADAPTER_BYTES, lambda adapter: adapter.bytes)
        #: By name: what its files were when it was read, and the encoder.
        self._encoders: dict[str, tuple[Hashable, ImageEncoder]] = {}
        self._features: BytesLru[Tensor] = BytesLru(FEATURE_BYTES, lambda tensor: tensor.nbytes)
        extras.add(self)

    def tensors(self) -> Iterator[Tensor]:
        """See ``Extra.tensors``."""
        encoders = (parameter for _, encoder in self._encoders.values() for parameter in encoder.model.parameters())
        adapters = (tensor for adapter in self._adapters.values() for tensor in adapter.tensors())
        return self._placement.there((self.bank.values, *self._features.values(), *adapters, *encoders))

    def release(self) -> None:
        """See ``Extra.release``; the pictures in the bank stay, they are small."""
        self._adapters.clear()
        self._encoders.clear()
        self._features.clear()

    def prompt(self, request: ImageRequest, *, guided: bool) -> ImagePrompt | None:
        """The request's picture, encoded once per content; None at scale 0, which leaves no trace.

        Raises InvalidRequest, with the adapter's id, for one that is unknown, not here or of another kind of model.
        """
        name, image = request.ip_adapter, request.ip_adapter_image
        facts = IP_ADAPTERS.get(name or "")
        if name is None or facts is None or image is None:
            raise InvalidRequest(f"IP-Adapter not found: {str(name)[:100]}", field="ip_adapter")
        adapter = self._adapter(name, request.model)
        if not request.ip_adapter_scale:
            return None
        seen, encoder = self._encoder(name, facts.encoder)
        if adapter.inputs != (has := encoder.width(places=adapter.reads_places)):
            raise InvalidRequest(
                f"IP-Adapter {name} is not for the image encoder {facts.encoder} that is here: "
                f"it reads {adapter.inputs} numbers, not {has}",
                field="ip_adapter",
            )

        def features(digest: str | None) -> Tensor:
            key = seen, adapter.reads_places, digest
            found = self._features.get(key)
            if found is None:
                with self._placement.using(Part.ENCODERS):
                    picture = None if digest is None else self._read(digest)
                    found = encoder.read(picture, places=adapter.reads_places)
                self._features.put(key, found)
            return found

        negative = features(None) if guided else None
        return ImagePrompt(adapter=adapter, encoder=seen, image=image, positive=features(image), negative=negative)

    def take(self, prompt: ImagePrompt) -> tuple[int, int]:
        """Slots of the positive and the negative side, 0 where there is none; see ``IpAdapterBank.take``."""
        key = prompt.adapter.key, prompt.encoder
        positive = self.bank.take((*key, prompt.image), _made(prompt.adapter, prompt.positive))
        if prompt.negative is None:
            return positive, 0
        try:
            return positive, self.bank.take((*key, None), _made(prompt.adapter, prompt.negative))
        except BaseException:
            self.bank.give(positive)
            raise

    def give(self, slots: tuple[int, int]) -> None:
        """The counterpart of ``take``."""
        for slot in slots:
            self.bank.give(slot)

    def _adapter(self, name: str, model: str) -> IpAdapter:
        path = self._find(AuxiliaryKind.IP_ADAPTER, name)
        if path is None:
            raise InvalidRequest(f"IP-Adapter {name} is not here: its weights are missing", field="ip_adapter")
        key = identity([path])
        found = self._adapters.get(key)
        if found is None:
            found = read_ip_adapter(
                path,
                name,
                self.bank.layers,
                key=key,
                model=model,
                dtype=self._dtype,
                device=self._placement.loading_device,
            )
            self._adapters.put(key, found)
        return found

    def _encoder(self, adapter: str, name: str) -> tuple[Hashable, ImageEncoder]:
        """And what tells its contents from all others."""
        folder = self._find(AuxiliaryKind.IMAGE_ENCODER, name)
        if folder is None:
            raise InvalidRequest(
                f"IP-Adapter {adapter} cannot be used: its image encoder {name} is not here", field="ip_adapter"
            )
        seen = identity(sorted(one for one in folder.glob("[!.]*") if one.is_file()))
        found = self._encoders.get(name)
        if found is None or found[0] != seen:
            # The old one's memory is needed for the new one.
            self._encoders.pop(name, None)
            encoder = ImageEncoder.load(
                folder, dtype=self._dtype, device=self._placement.loading_device, shared=self._shared
            )
            self._placement.add(Part.ENCODERS, encoder.model)
            found = self._encoders[name] = seen, encoder
        return found


def _made(adapter: IpAdapter, features: Tensor) -> Callable[[], Tensor]:
    return lambda: adapter.values(features)
