"""From a file of torch's to safetensors: a process of its own, started by ``convert.py``, that may end as it likes.

Reads and writes the two files that it is named, and answers with one JSON object on standard output: ``error``, or
``tensors`` (their number), ``unwrapped`` and ``dropped``. Imports nothing of ours. Arguments: source, target.
"""

from __future__ import annotations

import io
import json
import os
import re
import resource
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

#: What trainers put around the tensors, the one that is wanted first: averaged weights before those of the last step.
WRAPPERS = ("params_ema", "params", "state_dict")
#: A textual inversion as AUTOMATIC1111 saves it, and the name that such a tensor has in safetensors.
INVERSION, INVERSION_TENSOR = "string_to_param", "emb_params"
#: Bytes beside several copies of what the file holds.
_SPARE = 2 * 1024**3
#: Seconds of computing: these, and one for each of so many bytes.
_CPU_S, _CPU_BYTES = 120, 10_000_000
#: Safetensors' names of dtypes.
_DTYPES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
}
_GLOBAL = re.compile(r"GLOBAL ([\w.]+)")


class Refused(Exception):
    """Continues the sentence "FILE …"."""


def read(stream: BinaryIO) -> Any:
    """What torch saved there, if it is numbers and plain containers. Raises ``Refused``."""
    import pickle

    import torch

    try:
        return torch.load(stream, map_location="cpu", weights_only=True)
    except MemoryError:
        raise Refused("needs more memory than a file of its size may") from None
    except pickle.UnpicklingError as error:
        wanted = _GLOBAL.search(str(error))
        if wanted is None:
            raise Refused("is no file of torch's, or is damaged") from None
        raise Refused(f"wants {wanted[1][:100]} to be run when it is opened, which is never done") from None
    except Exception:
        raise Refused("is no file of torch's, or is damaged") from None


def unwrap(content: Any) -> tuple[dict[str, Any], list[str], list[str]]:
    """Tensors by name, the names they were found under, and the names of what is left out. Raises ``Refused``."""
    import torch

    unwrapped: list[str] = []
    dropped: list[str] = []
    while isinstance(content, Mapping):
        inner = next((name for name in WRAPPERS if isinstance(content.get(name), Mapping)), None)
        if inner is None:
            break
        unwrapped.append(inner)
        dropped += [str(name) for name in content if name != inner]
        content = content[inner]
    if isinstance(content, Mapping) and isinstance(content.get(INVERSION), Mapping):
        dropped += [str(name) for name in content if name != INVERSION]
        unwrapped.append(INVERSION)
        content = {INVERSION_TENSOR: next(iter(content[INVERSION].values()), None)}
    if not isinstance(content, Mapping):
        raise Refused("holds no tensors by name")
    tensors = {
        name: value.detach()
        for name, value in content.items()
        if isinstance(name, str) and isinstance(value, torch.Tensor)
    }
    dropped += [str(name) for name in content if name not in tensors]
    if not tensors:
        raise Refused("holds no tensors by name")
    return tensors, unwrapped, dropped


def lay_out(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Each in memory of its own, in order: tied weights share theirs. Raises ``Refused``."""
    import torch

    laid: dict[str, Any] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        dtype = str(tensor.dtype).removeprefix("torch.")
        if dtype not in _DTYPES or tensor.layout is not torch.strided:
            kind = dtype if tensor.layout is torch.strided else "a sparse tensor"
            raise Refused(f"holds {name[:100]} as {kind}, which is not read here")
        plain = tensor.contiguous()
        if plain.untyped_storage().data_ptr() in seen:
            plain = plain.clone()
        seen.add(plain.untyped_storage().data_ptr())
        laid[name] = plain
    return laid


def verify(stream: BinaryIO, tensors: Mapping[str, Any]) -> None:
    """Raises ``Refused`` unless the safetensors file holds these tensors, to the bit, and no others."""
    stream.seek(0)
    length = int.from_bytes(stream.read(8), "little")
    header = json.loads(stream.read(length))
    header.pop("__metadata__", None)
    same = header.keys() == tensors.keys()
    for name, tensor in tensors.items():
        entry = header[name] if same else {}
        kind = _DTYPES[str(tensor.dtype).removeprefix("torch.")]
        same = same and entry["dtype"] == kind and entry["shape"] == list(tensor.shape)
        if same:
            begin, end = entry["data_offsets"]
            stream.seek(8 + length + begin)
            same = stream.read(end - begin) == _bytes(tensor)
    if not same:
        raise Refused("was not written as it was read: is the disk in order?")


def _bytes(tensor: Any) -> bytes:
    import torch

    data: bytes = tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
    return data


def convert(source: BinaryIO, target: BinaryIO) -> dict[str, Any]:
    """Reads, writes, verifies; what is answered. Raises ``Refused``."""
    from safetensors.torch import save

    try:
        tensors, unwrapped, dropped = unwrap(read(source))
        laid = lay_out(tensors)
        del tensors
        target.write(save(laid, metadata={"format": "pt"}))
        target.flush()
        os.fsync(target.fileno())
        verify(target, laid)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "allocate memory" not in str(error):
            raise
        raise Refused("needs more memory than a file of its size may") from None
    except OSError as error:
        raise Refused(f"cannot be converted: {error.strerror}") from None
    return {"tensors": len(laid), "unwrapped": unwrapped, "dropped": dropped}


def _confine(size: int) -> None:
    """Nothing more can be opened, no file and no socket; memory and disk are a few times the file's size."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    memory = pages * resource.getpagesize() + 5 * size + _SPARE
    limits = {
        resource.RLIMIT_AS: memory,
        resource.RLIMIT_CPU: _CPU_S + size // _CPU_BYTES,
        resource.RLIMIT_FSIZE: 2 * size + _SPARE,
        resource.RLIMIT_NOFILE: 0,
        resource.RLIMIT_CORE: 0,
    }
    for limit, value in limits.items():
        resource.setrlimit(limit, (value, value))


def _warm_up() -> None:
    """Has everything imported that torch and safetensors import at first use: afterwards no file can be opened."""
    import torch
    from safetensors.torch import save

    for zipped in (True, False):
        saved = io.BytesIO()
        torch.save({"state_dict": {"a": torch.zeros(1)}}, saved, _use_new_zipfile_serialization=zipped)
        saved.seek(0)
        tensors, _, _ = unwrap(read(saved))
        laid = lay_out(tensors)
        verify(io.BytesIO(save(laid)), laid)


def main(source: str, target: str) -> None:
    """One file."""
    import torch

    torch.set_num_threads(1)
    _warm_up()
    try:
        with Path(source).open("rb") as read_from, Path(target).open("xb+") as written_to:
            _confine(os.fstat(read_from.fileno()).st_size)
            answer = convert(read_from, written_to)
    except Refused as error:
        answer = {"error": str(error)}
    except OSError as error:
        answer = {"error": f"cannot be converted: {error.strerror}"}
    sys.stdout.write(json.dumps(answer))
    sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
