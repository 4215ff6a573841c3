"""What a flow-match model (Flux) adds to its scheduler: how far the noise levels are shifted."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Flow:
    """The shift s of the noise levels, sigma -> s sigma / (1 + (s - 1) sigma) (Esser et al. 2024, arXiv 2403.03206,
    section 5.3.2). Exactly one of the two is given; the other is None."""

    #: Logarithm of the shift, where it depends on the size of the image (Flux dev).
    mu: float | None = None
    #: The shift, where it is one for all sizes (Flux schnell: 1).
    shift: float | None = None

    def __post_init__(self) -> None:
        if (self.mu is None) == (self.shift is None):
            raise ValueError("give either mu or shift")
        if not (math.isfinite(self.factor) and self.factor > 0):
            raise ValueError(f"a shift of {self.factor} is not a positive number")

    @property
    def factor(self) -> float:
        """s, whichever way it was given."""
        return math.exp(self.mu) if self.mu is not None else float(self.shift or 0.0)


def flow_for(config: Mapping[str, Any], tokens: int) -> Flow:
    """The shift of a checkpoint for images of ``tokens`` packed latents, as FluxPipeline's ``calculate_shift`` has it.

    ``config``: scheduler_config.json; where it says ``use_dynamic_shifting``, mu is a line through the base and the
    largest sequence length, else ``shift`` holds for all sizes.
    """
    if not config.get("use_dynamic_shifting", False):
        return Flow(shift=float(config.get("shift", 1.0)))
    low, high = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    least, most = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
    slope = (most - least) / (high - low)
    mu = float(tokens * slope + (least - slope * low))
    return Flow(shift=mu) if config.get("time_shift_type") == "linear" else Flow(mu=mu)


def flow_sigmas(steps: int) -> NDArray[np.float64]:
    """The unshifted noise levels that FluxPipeline asks for, (steps,) from 1 to 1 / steps."""
    return np.linspace(1.0, 1 / steps, steps)
