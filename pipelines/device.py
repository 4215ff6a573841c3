"""Which device draws, and in which number format."""

from __future__ import annotations

import torch

from pipelines.errors import BrokenCheckpoint


def pick_device(name: str) -> torch.device:
    """``auto`` is the first CUDA device, else the CPU; any other text is a torch device name."""
    if name == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """Weights' dtype: ``auto`` is bfloat16 from compute capability 8.0, float16 below, float32 on the CPU."""
    if name != "auto":
        dtype = getattr(torch, name, None)
        if not isinstance(dtype, torch.dtype):
            raise BrokenCheckpoint(f"dtype {name!r} is not one of auto, float32, bfloat16, float16")
        return dtype
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16
