"""Networks that enlarge pictures, from their published weights: ESRGAN, Real-ESRGAN and its compact sibling."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipelines.errors import BrokenCheckpoint
from pipelines.weight_file import WeightFile

#: Added to what goes past a block of the network, by this much.
RESIDUAL = 0.2
SLOPE = 0.2
#: Channels of the network's input -> the factor by which a picture is folded into channels beforehand.
FOLDS = {3: 1, 12: 2, 48: 4}
#: Tables that training scripts wrap the weights in.
WRAPPINGS = ("params_ema.", "params.")


class Enlarger(nn.Module):
    """(rows, 3, height, width), 0 .. 1 -> the same ``factor`` times as large; sides are multiples of ``multiple``."""

    factor: int
    multiple: int


class DenseBlock(nn.Module):
    """Five convolutions, each of which sees what all before it made."""

    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        for number in range(1, 6):
            seen = width + (number - 1) * growth
            self.add_module(f"conv{number}", nn.Conv2d(seen, width if number == 5 else growth, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        """Shape for shape."""
        *convs, last = self.children()
        seen = [x]
        for conv in convs:
            seen.append(functional.leaky_relu(conv(torch.cat(seen, dim=1)), SLOPE))
        added: Tensor = last(torch.cat(seen, dim=1))
        return x + RESIDUAL * added


class ResidualBlock(nn.Module):
    """Three dense blocks."""

    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        self.rdb1, self.rdb2, self.rdb3 = (DenseBlock(width, growth) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        """Shape for shape."""
        added: Tensor = self.rdb3(self.rdb2(self.rdb1(x)))
        return x + RESIDUAL * added


class RRDBNet(Enlarger):
    """Residual in residual dense blocks (Wang et al. 2018; Real-ESRGAN: Wang et al. 2021)."""

    def __init__(self, *, width: int, growth: int, blocks: int, doublings: int, fold: int) -> None:
        super().__init__()
        self.factor, self.multiple = 2**doublings // fold, fold
        self.conv_first = nn.Conv2d(3 * fold**2, width, 3, padding=1)
        self.body = nn.Sequential(*(ResidualBlock(width, growth) for _ in range(blocks)))
        self.conv_body = nn.Conv2d(width, width, 3, padding=1)
        self.ups = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(doublings))
        self.conv_hr = nn.Conv2d(width, width, 3, padding=1)
        self.conv_last = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """See ``Enlarger``."""
        first = self.conv_first(functional.pixel_unshuffle(x, self.multiple))
        y = first + self.conv_body(self.body(first))
        for conv in self.ups:
            y = functional.leaky_relu(conv(functional.interpolate(y, scale_factor=2.0, mode="nearest")), SLOPE)
        out: Tensor = self.conv_last(functional.leaky_relu(self.conv_hr(y), SLOPE))
        return out


class CompactNet(Enlarger):
    """Convolutions at the small size only, added to the pixels (Real-ESRGAN's ``SRVGGNetCompact``)."""

    def __init__(self, *, width: int, convs: int, factor: int) -> None:
        super().__init__()
        self.factor, self.multiple = factor, 1
        layers: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1), nn.PReLU(width)]
        for _ in range(convs):
            layers += [nn.Conv2d(width, width, 3, padding=1), nn.PReLU(width)]
        self.body = nn.Sequential(*layers, nn.Conv2d(width, 3 * factor**2, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        """See ``Enlarger``."""
        return functional.pixel_shuffle(self.body(x), self.factor) + functional.interpolate(
            x, scale_factor=float(self.factor)
        )


def load_enlarger(path: Path, name: str, *, dtype: torch.dtype, device: torch.device) -> Enlarger:
    """The network of a safetensors file in any published layout, its sizes read from the tensors.

    Raises ``BrokenCheckpoint`` for a file that is damaged, of another kind, or holds more or less than the network.
    """
    from safetensors.torch import load_file

    file = WeightFile.open(path, name)
    names = _renamed(file.tensors, name)
    shapes = {new: file.tensors[old].shape for new, old in names.items()}
    try:
        with torch.device("meta"):
            network: Enlarger = _compact(shapes) if "body.0.weight" in shapes else _rrdb(shapes)
    except (KeyError, IndexError, ValueError) as error:
        raise BrokenCheckpoint(f"model {name}: {path.name} is no network that enlarges pictures") from error
    _compare(network, shapes, name, path)
    tensors = load_file(path)
    network.load_state_dict({new: tensors[old] for new, old in names.items()}, assign=True)
    return network.eval().requires_grad_(False).to(device, dtype)


def _rrdb(shapes: Mapping[str, tuple[int, ...]]) -> RRDBNet:
    width, channels = shapes["conv_first.weight"][:2]
    return RRDBNet(
        width=width,
        growth=shapes["body.0.rdb1.conv1.weight"][0],
        blocks=len({key.split(".")[1] for key in shapes if key.startswith("body.")}),
        doublings=sum(key.startswith("ups.") and key.endswith(".weight") for key in shapes),
        fold=FOLDS[channels],
    )


def _compact(shapes: Mapping[str, tuple[int, ...]]) -> CompactNet:
    convs = [key for key, shape in shapes.items() if len(shape) == 4]
    last = max(convs, key=lambda key: int(key.split(".")[1]))
    factor = round((shapes[last][0] / 3) ** 0.5)
    return CompactNet(width=shapes["body.0.weight"][0], convs=len(convs) - 2, factor=factor)


def _compare(network: Enlarger, shapes: Mapping[str, tuple[int, ...]], name: str, path: Path) -> None:
    wanted = {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}
    for key in sorted(wanted.keys() | shapes.keys()):
        if wanted.get(key) != shapes.get(key):
            problem = "lacks" if key not in shapes else "has an unknown" if key not in wanted else "has a strange"
            raise BrokenCheckpoint(f"model {name}: {path.name} {problem} {key[:100]}")


# Names of tensors, as three generations of training scripts wrote them.


def _renamed(tensors: Mapping[str, object], name: str) -> dict[str, str]:
    """Our name -> the file's."""
    bare = {_unwrapped(key): key for key in tensors}
    layout: Callable[[str, Mapping[str, str]], str] = _current
    if any(key.startswith("model.") for key in bare):
        layout = _sequential
    elif "trunk_conv.weight" in bare:
        layout = _trunk
    renamed = {layout(key, bare): old for key, old in bare.items()}
    if len(renamed) != len(tensors):
        raise BrokenCheckpoint(f"model {name}: its file names tensors twice")
    return renamed


def _unwrapped(key: str) -> str:
    return next((key.removeprefix(one) for one in WRAPPINGS if key.startswith(one)), key)


def _current(key: str, _: Mapping[str, str]) -> str:
    """Real-ESRGAN and BasicSR: ``body.0.rdb1.conv1``, ``conv_up1``."""
    up = re.fullmatch(r"conv_up(\d+)\.(\w+)", key)
    return f"ups.{int(up[1]) - 1}.{up[2]}" if up else key


#: ESRGAN's second layout.
_TRUNK = {"trunk_conv": "conv_body", "HRconv": "conv_hr"}


def _trunk(key: str, _: Mapping[str, str]) -> str:
    """ESRGAN: ``RRDB_trunk.0.RDB1.conv1``, ``upconv1``, ``HRconv``."""
    layer, kind = key.rpartition(".")[::2]
    if block := re.fullmatch(r"RRDB_trunk\.(\d+)\.RDB(\d)\.(conv\d)", layer):
        return f"body.{block[1]}.rdb{block[2]}.{block[3]}.{kind}"
    if up := re.fullmatch(r"upconv(\d+)", layer):
        return f"ups.{int(up[1]) - 1}.{kind}"
    return f"{_TRUNK.get(layer, layer)}.{kind}"


def _sequential(key: str, keys: Mapping[str, str]) -> str:
    """The first ESRGAN: ``model.1.sub.0.RDB1.conv1.0``; the layers after the blocks are known by their order alone."""
    if block := re.fullmatch(r"model\.1\.sub\.(\d+)\.RDB(\d)\.(conv\d)\.0\.(\w+)", key):
        return f"body.{block[1]}.rdb{block[2]}.{block[3]}.{block[4]}"
    if body := re.fullmatch(r"model\.1\.sub\.\d+\.(weight|bias)", key):
        return f"conv_body.{body[1]}"
    layer = re.fullmatch(r"model\.(\d+)\.(\w+)", key)
    if layer is None:
        return key
    order = sorted({int(one[1]) for other in keys if (one := re.fullmatch(r"model\.(\d+)\.\w+", other))})
    names = ["conv_first", *(f"ups.{number}" for number in range(len(order) - 3)), "conv_hr", "conv_last"]
    return f"{names[order.index(int(layer[1]))]}.{layer[2]}"
