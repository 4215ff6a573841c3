"""The step: one forward over the entries of a lane's rows, and one update of each row by its table."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from pipelines.block import StepBlock
from pipelines.errors import OutOfMemory
from pipelines.slots import SlotPool
from schedulers.update import advance, blend

#: name -> one tensor per entry, without an entry axis when it belongs to one row, with it inside a forward.
Conditioning = Mapping[str, Tensor]
#: (sample (entries, *shape), timestep (entries,) float32, conditioning) -> output (entries, *shape).
Denoiser = Callable[[Tensor, Tensor, Conditioning], Tensor]


def denoise(denoiser: Denoiser, dtype: torch.dtype, pool: SlotPool, block: StepBlock) -> None:
    """Advances the slots named by ``block`` by one denoiser call.

    ``dtype`` is what the denoiser's input is cast to, after the input scale; everything else is float32. It keeps no
    state besides the pool, reads nothing back, launches as many operations for one row as for many (so that it can be
    captured in a CUDA graph), and writes the pool only at its very end: a step that failed on the way has not happened.
    """
    spread = (-1, *(1,) * len(pool.shape))
    # index_select takes int32, index_copy_ does not.
    slots = block.indices("row_slot").long()
    entry_slots = block.indices("entry_slot")
    sample = pool.latents[:, 0].index_select(0, entry_slots) * block.floats("input_scale").view(spread)
    if pool.extra is not None:
        sample = torch.cat((sample, pool.extra.index_select(0, entry_slots)), dim=pool.channel_axis)
    sides = block.indices("entry_conditioning")
    conditioning = {name: value.index_select(0, sides) for name, value in pool.conditioning.items()}
    out = denoiser(sample.to(dtype), block.floats("timestep"), conditioning).float()
    negative = out.index_select(0, block.indices("row_negative"))
    positive = out.index_select(0, block.indices("row_positive"))
    guided = negative + block.floats("guidance").view(spread) * (positive - negative)
    noise = pool.noise.index_select(0, slots)
    stacked = torch.cat((pool.latents.index_select(0, slots), guided.unsqueeze(1), noise.unsqueeze(1)), dim=1)
    scaled = block.floats("norm_scaled") > 0
    moved = advance(stacked, block.matrices, scaled, any_norm_scaled=block.any_norm_scaled)
    if block.any_blended:
        moved = torch.cat((_blended(moved[:, 0], pool, block, slots).unsqueeze(1), moved[:, 1:]), dim=1)
    # A sum is not finite as soon as one of its parts is not, and takes one pass.
    finite = moved.flatten(1).sum(dim=1).isfinite()
    pool.finite.index_copy_(0, slots, finite)
    pool.latents.index_copy_(0, slots, moved)


def _blended(x: Tensor, pool: SlotPool, block: StepBlock, slots: Tensor) -> Tensor:
    """x with the kept area put back; rows without a mask have one that repaints everything, which leaves x as it is."""
    reference = pool.reference
    assert reference is not None
    clean, noise, mask = (part.index_select(0, slots) for part in (reference.clean, reference.noise, reference.mask))
    return blend(x, clean, noise, mask, block.floats("blend").view(-1, 2))


@contextlib.contextmanager
def translated_memory_errors(device: torch.device) -> Iterator[None]:
    """Turns an allocator's failure into ``OutOfMemory`` and gives cached blocks back."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        # The CPU allocator raises a bare RuntimeError; only its text tells it from a bug.
        known = isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)
        if not known:
            raise
        if device.type == "cuda":
            torch.cuda.empty_cache()
        raise OutOfMemory("the device has too little memory for this request") from error
