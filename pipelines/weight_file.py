"""What a safetensors file holds, read from its header and checked against its size, without loading a tensor."""

from __future__ import annotations

import contextlib
import json
import math
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from pipelines.errors import BrokenCheckpoint

#: A longer header is no model's; the format's own limit.
MAX_HEADER_BYTES = 100 * 1000 * 1000
#: Bytes per element of the format's dtypes.
WIDTHS = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "U16": 2,
    "I16": 2,
    "F16": 2,
    "BF16": 2,
    "U32": 4,
    "I32": 4,
    "F32": 4,
    "U64": 8,
    "I64": 8,
    "F64": 8,
}
#: Formats of the same weights that run code when they are opened.
PICKLED = (".ckpt", ".bin", ".pt", ".pth")


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorInfo:
    """One tensor of a file."""

    #: A key of ``WIDTHS``.
    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """Numbers in it."""
        return math.prod(self.shape)

    def bytes_in(self, width: int) -> int:
        """Its size once floating-point numbers take ``width`` bytes; whole numbers stay as they are."""
        return self.elements * (width if "F" in self.dtype else WIDTHS[self.dtype])


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightFile:
    """A safetensors file whose header is sound and whose tensors are all there."""

    path: Path
    tensors: Mapping[str, TensorInfo]
    #: What whoever wrote it says about it.
    metadata: Mapping[str, str]

    @classmethod
    def open(cls, path: Path, model: str) -> WeightFile:
        """Reads the header; BrokenCheckpoint when the file is missing, cut off, damaged or of another format."""
        try:
            refuse_pickled(path.name)
            tensors, metadata = _read(path)
            return cls(path=path, tensors=tensors, metadata=metadata)
        except FileNotFoundError as error:
            raise BrokenCheckpoint(f"model {model}: {path.name} is missing") from error
        except OSError as error:
            raise BrokenCheckpoint(f"model {model}: {path.name} cannot be read") from error
        except _Unsound as error:
            raise BrokenCheckpoint(f"model {model}: {path.name} {error}") from error

    def weight_bytes(self, width: int, keys: Iterable[str] | None = None) -> int:
        """Bytes of these tensors (default all) once floating-point numbers take ``width`` bytes."""
        return sum(self.tensors[key].bytes_in(width) for key in (self.tensors if keys is None else keys))

    @contextlib.contextmanager
    def reading(self, model: str) -> Iterator[Any]:
        """safetensors' own open file, for its tensors; BrokenCheckpoint for what that library finds wrong inside."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.path, "pt") as file:
                yield file
        except (SafetensorError, OSError) as error:
            # It is stricter in corners, and the file may have become another one meanwhile.
            raise BrokenCheckpoint(f"model {model}: {self.path.name} cannot be read") from error


class _Unsound(Exception):
    """Continues the sentence "FILE …"."""


def refuse_pickled(name: str) -> None:
    """Raises for a file that would have to be unpickled, which is never done."""
    if name.endswith(PICKLED):
        raise _Unsound("is a pickle, which can run code and is never opened: convert it to .safetensors")
    if not name.endswith(".safetensors"):
        raise _Unsound("is not a .safetensors file")


def _read(path: Path) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        # Whoever opens a pipe waits until somebody writes to it.
        raise _Unsound("is no file")
    size = status.st_size
    with path.open("rb") as stream:
        header, length = _header(stream, size)
    tensors = {}
    spans = []
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        tensors[name], span = _tensor(name, entry)
        spans.append(span)
    end = 0
    for begin, stop in sorted(spans):
        if begin != end:
            raise _Unsound("is damaged: its tensors overlap or leave gaps")
        end = stop
    held = size - 8 - length
    if held < end:
        raise _Unsound(f"is cut off: {size} bytes of {8 + length + end}")
    if held > end:
        raise _Unsound(f"is damaged: {held - end} bytes too long")
    return tensors, _metadata(header.get("__metadata__"))


def _metadata(entry: object) -> dict[str, str]:
    """Nothing that is not text, as the format wants it."""
    told = entry.items() if isinstance(entry, dict) else ()
    return {key: value for key, value in told if isinstance(value, str)}


def _header(stream: BinaryIO, size: int) -> tuple[dict[str, Any], int]:
    length = int.from_bytes(stream.read(8), "little")
    if size < 8:
        raise _Unsound(f"is cut off: it has {size} bytes")
    if length > MAX_HEADER_BYTES:
        raise _Unsound("is no safetensors file: its header would be longer than 100 MB")
    if length > size - 8:
        raise _Unsound("is cut off within its header")
    try:
        header = json.loads(stream.read(length))
    except (ValueError, RecursionError) as error:
        raise _Unsound("is damaged: its header is not JSON") from error
    if not isinstance(header, dict):
        raise _Unsound("is damaged: its header is not a JSON object")
    return header, length


def _tensor(name: str, entry: object) -> tuple[TensorInfo, tuple[int, int]]:
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(begin), int(stop)]}:
            pass
        case _:
            raise _Unsound(f"is damaged: its header does not describe {name[:100]}")
    if dtype not in WIDTHS:
        raise _Unsound(f"holds {name[:100]} as {dtype[:20]}, which is not read here")
    if not all(type(side) is int and side >= 0 for side in shape):
        raise _Unsound(f"is damaged: {name[:100]} has no proper shape")
    info = TensorInfo(dtype=dtype, shape=tuple(shape))
    if begin < 0 or stop - begin != info.elements * WIDTHS[dtype]:
        raise _Unsound(f"is damaged: {name[:100]} has {stop - begin} bytes, not {info.elements * WIDTHS[dtype]}")
    return info, (begin, stop)
