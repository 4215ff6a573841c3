"""Pictures that rows are becoming: predicted from what a step changed, while the step itself knows nothing of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor

from pipelines.base import Glimpse, Pixels
from pipelines.colours import Colours
from pipelines.rows import DiffusionRow
from pipelines.slots import SlotPool
from schedulers.table import SamplerTable

#: Of the noise before a step what it must at least take away; of less nothing can be predicted.
LEAST_CHANGE = 0.01


@dataclass(frozen=True, kw_only=True)
class Shares:
    """predicted = after (x' - noise n) - before x, of a row's x before its step, x' after it, and the noise it drew."""

    before: float
    after: float
    noise: float


def shares(table: SamplerTable, at: int) -> Shares | None:
    """How call ``at`` of the table shows the picture; None where it does not (the second calls of some samplers).

    A step that knows the picture x0 and its noise e goes from x = a x0 + s e to x' = a' x0 + s' e, or, where it draws
    fresh noise n, to a' x0 + d e + m n with d² + m² = s'² (Song et al. 2021, DDIM, equation 12). Of these two equations
    x0 is what the network took for the picture; for samplers that look further back, nearly.
    """
    if table.norm_scaled[at]:
        return None
    alpha, sigma = _level(table, at)
    alpha_after, sigma_after = _level(table, at + 1)
    noise = float(table.matrices[at, 0, 5])
    kept = sqrt(max(sigma_after**2 - noise**2, 0.0))
    change = sigma * alpha_after - kept * alpha
    if change < LEAST_CHANGE * sigma * alpha_after:
        return None
    return Shares(before=kept / change, after=sigma / change, noise=noise)


def _level(table: SamplerTable, at: int) -> tuple[float, float]:
    """(a, s) of x = a x0 + s e before call ``at``."""
    scale = 1.0 if at == table.calls else float(table.input_scale[at])
    if scale < 1.0:
        # Sampled in x0 + s e and scaled for the network: so also between the calls of a step of two.
        return 1.0, sqrt(1.0 / scale**2 - 1.0)
    return table.start if at == 0 else (float(table.blend[at - 1, 0]), float(table.blend[at - 1, 1]))


class LatentGlimpse(Glimpse):
    """See ``Glimpse``; in the resolution of the latents. Nothing is waited for."""

    def __init__(
        self,
        rows: Sequence[DiffusionRow],
        pool: SlotPool,
        colours: Sequence[Colours],
        unpack: Callable[[Tensor], Tensor],
    ) -> None:
        """``rows`` are of one lane, each at a call that shows it; ``unpack`` is ``Family.unpack`` for one row."""
        self.rows = tuple(rows)
        self._rows = tuple(rows)
        self._pool = pool
        self._colours = colours
        self._unpack = unpack
        self._shares = [shares(row.table, row.step) for row in rows]
        self._before = [pool.latents[row.occupied, 0].clone() for row in rows]
        self._shown: list[Tensor] = []
        self._event: torch.cuda.Event | None = None

    @torch.inference_mode()
    def develop(self) -> None:
        """See ``Glimpse.develop``."""
        for row, part, before, colours in zip(self._rows, self._shares, self._before, self._colours, strict=True):
            assert part is not None
            slot = row.occupied
            after = self._pool.latents[slot, 0] - part.noise * self._pool.noise[slot]
            picture = colours.show(self._unpack(part.after * after - part.before * before))
            self._shown.append(_to_host(picture))
        self._before = []
        if self._pool.device.type == "cuda":
            self._event = torch.cuda.Event()
            self._event.record()

    def pixels(self) -> list[Pixels] | None:
        """See ``Glimpse.pixels``."""
        if self._event is not None and not self._event.query():
            return None
        return [one.numpy() for one in self._shown]


def _to_host(picture: Tensor) -> Tensor:
    if picture.device.type != "cuda":
        return picture
    host = torch.empty(picture.shape, dtype=picture.dtype, pin_memory=True)
    host.copy_(picture, non_blocking=True)
    return host
