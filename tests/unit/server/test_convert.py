"""Safetensors of what would have to be unpickled: compared, whole or not at all, and nothing in it is run."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from server.config import ROOT
from server.convert import ConvertError, convert
from server.unpickle import Refused, lay_out, unwrap, verify


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, flag: Path) -> None:
        self.flag = flag

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, (f"touch {self.flag}",))


def network() -> dict[str, torch.Tensor]:
    """Tied, transposed, sliced, empty, of several dtypes, and not a number."""
    weight = torch.arange(12, dtype=torch.float32).reshape(3, 4)
    return {
        "a.weight": weight,
        "b.weight": weight,
        "b.transposed": weight.t(),
        "b.part": weight[1:],
        "half": torch.tensor([1.5, float("nan"), float("-inf")], dtype=torch.float16),
        "bfloat": torch.ones(2, 2, dtype=torch.bfloat16),
        "number": torch.tensor(7),
        "none": torch.zeros(0, 3),
    }


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    alike = (one.dtype, one.shape) == (other.dtype, other.shape)
    return alike and torch.equal(one.nan_to_num(9), other.nan_to_num(9))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("convert")


def test_tensors_are_what_they_were(made: Path) -> None:
    torch.save({"epoch": 3, "params": {"old": torch.zeros(1)}, "params_ema": network() | {"x": None}}, made / "n.pth")
    done = convert(made / "n.pth")
    assert (done.file, done.tensors) == (made / "n.safetensors", len(network()))
    assert done.notes == ("Taken from params_ema.", "Left out: epoch, params, x.")
    found = load_file(done.file)
    assert found.keys() == network().keys()
    assert all(same(found[name], tensor) for name, tensor in network().items())
    assert sorted(path.name for path in made.iterdir()) == ["n.pth", "n.safetensors"]
    with pytest.raises(ConvertError, match="is there already"):
        convert(made / "n.pth")


def test_the_oldest_format_is_read_and_a_folder_may_be_named(tmp_path: Path) -> None:
    content = OrderedDict({"a": torch.ones(2)})
    torch.save(content, tmp_path / "old.ckpt", _use_new_zipfile_serialization=False)
    (tmp_path / "out").mkdir()
    done = convert(tmp_path / "old.ckpt", tmp_path / "out")
    assert done.file == tmp_path / "out" / "old.safetensors"
    assert same(load_file(done.file)["a"], torch.ones(2))


@pytest.mark.parametrize("zipped", [True, False])
def test_what_a_file_wants_run_is_not_run(tmp_path: Path, zipped: bool) -> None:
    flag, file = tmp_path / "flag", tmp_path / "evil.pth"
    torch.save({"a": torch.ones(2), "b": Evil(flag)}, file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ConvertError) as caught:
        convert(file)
    assert str(caught.value) == f"{file} wants posix.system to be run when it is opened, which is never done"
    assert [path.name for path in tmp_path.iterdir()] == ["evil.pth"]
    # The file does what it is accused of.
    torch.load(file, weights_only=False)
    assert flag.exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"<html>not found</html>", "is no file of torch's, or is damaged"),
        (b"", "is no file of torch's, or is damaged"),
        (None, "needs more memory than a file of its size may"),
    ],
)
def test_what_cannot_be_converted_is_named_and_leaves_nothing(tmp_path: Path, content: bytes | None, said: str) -> None:
    file = tmp_path / "x.pt"
    if content is None:
        # A few bytes that claim to be 400 gigabytes.
        torch.save({"a": torch.zeros(1).expand(100_000, 1_000_000)}, file)
    else:
        file.write_bytes(content)
    with pytest.raises(ConvertError) as caught:
        convert(file)
    assert str(caught.value) == f"{file} {said}"
    assert [path.name for path in tmp_path.iterdir()] == ["x.pt"]


def test_a_call_that_makes_no_sense_starts_nothing(tmp_path: Path) -> None:
    source, there = tmp_path / "a.pth", tmp_path / "there.safetensors"
    source.write_bytes(b"")
    there.write_bytes(b"precious")
    cases: list[tuple[Path, Path | None, str]] = [
        (tmp_path / "no.pth", None, "no.pth is no file"),
        (there, None, "does not end in .ckpt, .bin, .pt, .pth: there is nothing to convert"),
        (source, tmp_path / "a.bin", "a.bin does not end in .safetensors"),
        (source, there, "there.safetensors is there already"),
        (source, tmp_path / "no" / "a.safetensors", "no is no folder"),
    ]
    for file, target, said in cases:
        with pytest.raises(ConvertError) as caught:
            convert(file, target)
        assert str(caught.value).endswith(said)
    assert there.read_bytes() == b"precious"


def test_the_command_says_what_it_did_in_a_line(made: Path) -> None:
    torch.save({"a": torch.ones(2)}, made / "one.bin")
    command = [sys.executable, "-P", "-m", "server", "convert", str(made / "one.bin")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for code, out, err in (
        (0, f"{made / 'one.safetensors'}: 1 tensor\n", ""),
        (1, "", f"latentd: {made / 'one.safetensors'} is there already\n"),
    ):
        ended = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert (ended.returncode, ended.stdout, ended.stderr) == (code, out, err)


@pytest.mark.parametrize(
    ("content", "names", "unwrapped", "dropped"),
    [
        ({"a": torch.ones(1), "n": 3, 7: torch.ones(1)}, ["a"], [], ["n", "7"]),
        ({"state_dict": {"a": torch.ones(1)}, "epoch": 1}, ["a"], ["state_dict"], ["epoch"]),
        ({"state_dict": {"params": {"a": torch.ones(1)}}}, ["a"], ["state_dict", "params"], []),
        ({"params": {"a": torch.ones(1)}, "params_ema": {"b": torch.ones(1)}}, ["b"], ["params_ema"], ["params"]),
        ({"params": torch.ones(1)}, ["params"], [], []),
        (
            {"string_to_param": {"*": torch.ones(2, 8)}, "name": "cat", "string_to_token": {"*": 265}},
            ["emb_params"],
            ["string_to_param"],
            ["name", "string_to_token"],
        ),
    ],
)
def test_tensors_are_found_where_trainers_put_them(
    content: Any, names: list[str], unwrapped: list[str], dropped: list[str]
) -> None:
    tensors, found_in, left_out = unwrap(content)
    assert (list(tensors), found_in, left_out) == (names, unwrapped, dropped)


@pytest.mark.parametrize("content", [[torch.ones(1)], torch.ones(1), {}, {"a": 1}, {"state_dict": {}}, None])
def test_a_file_without_named_tensors_is_refused(content: Any) -> None:
    with pytest.raises(Refused, match="holds no tensors by name"):
        unwrap(content)


@pytest.mark.parametrize(
    ("tensor", "said"),
    [
        (torch.ones(1, dtype=torch.complex64), "holds x as complex64, which is not read here"),
        (torch.eye(2).to_sparse(), "holds x as a sparse tensor, which is not read here"),
    ],
)
def test_what_the_format_lacks_is_refused_by_name(tensor: torch.Tensor, said: str) -> None:
    with pytest.raises(Refused) as caught:
        lay_out({"x": tensor})
    assert str(caught.value) == said


@pytest.mark.parametrize("other", [{"a": torch.zeros(2)}, {"a": torch.ones(3)}, {"b": torch.ones(2)}, network()])
def test_a_file_that_is_not_what_was_read_is_refused(other: dict[str, torch.Tensor]) -> None:
    import io

    from safetensors.torch import save

    written = io.BytesIO(save(lay_out(other)))
    verify(written, lay_out(other))
    with pytest.raises(Refused, match="was not written as it was read"):
        verify(written, {"a": torch.ones(2)})
