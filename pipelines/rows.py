"""A row of a denoiser."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pipelines.base import ImageRow, LaneKey
from pipelines.block import RowStep
from pipelines.draws import Draw
from pipelines.images import Source
from pipelines.ip_adapters import ImagePrompt
from pipelines.lora_bank import LoraStack
from pipelines.request import ImageRequest
from pipelines.step import Conditioning
from pipelines.vae import Vae
from schedulers.table import SamplerTable


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """What a request is conditioned on."""

    positive: Conditioning
    #: None: the row has one entry.
    negative: Conditioning | None
    #: out = negative + scale x (positive - negative).
    scale: float = 1.0
    warnings: tuple[str, ...] = ()


class DiffusionRow(ImageRow):
    """One image in flight in a denoiser's lane."""

    def __init__(
        self,
        *,
        request: ImageRequest,
        index: int,
        lane: LaneKey,
        table: SamplerTable,
        encoded: Encoded,
        draws: tuple[Draw, ...],
        source: Source | None,
        vae: Vae,
        stack: LoraStack | None = None,
        picture: ImagePrompt | None = None,
        warnings: tuple[str, ...] = (),
    ) -> None:
        super().__init__(
            request=request,
            index=index,
            lane=lane,
            calls=table.calls,
            entries=1 if encoded.negative is None else 2,
            scheduler=table.scheduler,
            warnings=encoded.warnings + table.warnings + warnings,
        )
        self.table = table
        self.encoded = encoded
        self.draws = draws
        #: What it starts from, until it enters.
        self.source = source
        #: What its picture is decoded with, and its inputs were encoded with.
        self.vae = vae
        self.generator = torch.Generator("cpu").manual_seed(self.seed)
        self.slot: int | None = None
        #: Its LoRAs, and their slot in the model's bank once it has entered; 0: none.
        self.stack = stack
        self.lora = 0
        #: Its picture as a prompt, and that one's slots in the model's bank once it has entered; 0: none.
        self.picture = picture
        self.adapter = (0, 0)
        #: The kept area is put back after each step.
        self.blends = False
        #: Noise drawn for the coming step, kept until the step has been applied: a retry must not draw again.
        self.drawn: Tensor | None = None

    @property
    def occupied(self) -> int:
        """The slot of a row that has entered."""
        assert self.slot is not None, "the row has not entered its lane"
        return self.slot

    def draw(self, shape: tuple[int, ...]) -> Tensor:
        """Normal noise, float32.

        Shaped (1, ...) and drawn on the CPU, as stock does with a list of generators: one seed, one picture, whatever
        the device and the batch.
        """
        return torch.randn((1, *shape), generator=self.generator)[0]

    def part(self) -> RowStep:
        """What the next step needs to know of this row."""
        at, table = self.step, self.table
        return RowStep(
            slot=self.occupied,
            guidance=self.encoded.scale if self.entries == 2 else None,
            timestep=float(table.timesteps[at]),
            input_scale=float(table.input_scale[at]),
            matrix=table.matrices[at],
            norm_scaled=table.norm_scaled[at],
            blend=(float(table.blend[at, 0]), float(table.blend[at, 1])) if self.blends else None,
            lora=self.lora,
            adapter=self.adapter,
            adapter_scale=self.request.ip_adapter_scale,
        )
