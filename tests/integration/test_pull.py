"""./latentd pull against a hub of our own: what is fetched, kept, compared and refused."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from server.pull.choose import choose
from server.pull.errors import PullError
from tests.integration.hub import Hub, Repository

ROOT = Path(__file__).resolve().parents[2]
SD15 = "stable-diffusion-v1-5/stable-diffusion-v1-5"
MIB = 1024 * 1024


def tensors(size: int = 64, seed: int = 1) -> bytes:
    """A safetensors file with one tensor."""
    header = json.dumps({"w": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes([seed]) * size


def sd15_files(unet: bytes = tensors()) -> dict[str, bytes]:
    """What the real repository has, in kind: more formats and precisions than one needs."""
    return {
        ".gitattributes": b"x",
        "README.md": b"# x",
        "model_index.json": b'{"_class_name": "StableDiffusionPipeline"}',
        "v1-5-pruned.safetensors": tensors(seed=9),
        "scheduler/scheduler_config.json": b"{}",
        "tokenizer/merges.txt": b"a b",
        "tokenizer/vocab.json": b"{}",
        "text_encoder/config.json": b"{}",
        "text_encoder/model.safetensors": tensors(seed=2),
        "text_encoder/pytorch_model.bin": b"pickle",
        "safety_checker/model.safetensors": tensors(seed=3),
        "unet/config.json": b"{}",
        "unet/diffusion_pytorch_model.bin": b"pickle",
        "unet/diffusion_pytorch_model.safetensors": tensors(128),
        "unet/diffusion_pytorch_model.non_ema.safetensors": tensors(128, 4),
        "unet/diffusion_pytorch_model.fp16.safetensors": unet,
        "vae/config.json": b"{}",
        "vae/diffusion_pytorch_model.fp16.safetensors": tensors(seed=5),
        "vae/diffusion_pytorch_model.safetensors": tensors(128, 6),
    }


#: Of the above: fp16 where there is one, else what there is.
NEEDED = [
    "latentd.json",
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "tokenizer/merges.txt",
    "tokenizer/vocab.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model.fp16.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.fp16.safetensors",
]


def sdxl_files() -> dict[str, bytes]:
    more = {
        "tokenizer_2/vocab.json": b"{}",
        "text_encoder_2/config.json": b"{}",
        "text_encoder_2/model.fp16.safetensors": tensors(seed=7),
    }
    return sd15_files() | more


class Puller:
    """``latentd pull`` in a process of its own."""

    def __init__(self, hub: Hub, data: Path) -> None:
        self.hub = hub
        self.data = data

    def start(self, *arguments: str, token: str | None = None) -> subprocess.Popen[str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "LATENTD_"))}
        environment |= {"HF_ENDPOINT": self.hub.address, "HF_HOME": str(self.data.parent / "hf"), "COLUMNS": "200"}
        # Proxies of this machine know nothing of a server in this process.
        environment |= {"NO_PROXY": "*", "no_proxy": "*"} | ({"HF_TOKEN": token} if token else {})
        command = [sys.executable, "-W", "error", "-m", "server", *arguments, "--data", str(self.data)]
        return subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def __call__(self, *arguments: str, token: str | None = None) -> tuple[int, str]:
        """Exit code, and what was said: errors if there are any."""
        process = self.start(*arguments, token=token)
        out, err = process.communicate(timeout=60)
        return process.returncode, err or out

    def files(self, model: str) -> list[str]:
        folder = self.data / "models" / model
        return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())

    def commit(self, model: str) -> str:
        return str(json.loads((self.data / "models" / model / "latentd.json").read_text())["commit"])


@pytest.fixture
def puller(tmp_path: Path) -> Iterator[Callable[..., Puller]]:
    """Starts hubs."""
    hubs: list[Hub] = []

    def start(**repositories: Repository) -> Puller:
        hubs.append(Hub())
        hubs[-1].repositories = {name.replace("__", "/"): one for name, one in repositories.items()}
        return Puller(hubs[-1], tmp_path / "data")

    yield start
    for hub in hubs:
        hub.close()


def with_sd15(**options: object) -> dict[str, Repository]:
    return {SD15: Repository(files=sd15_files(), **options)}  # type: ignore[arg-type]


def test_only_the_needed_files_come_and_the_commit_is_recorded(puller: Callable[..., Puller]) -> None:
    pull = puller(**with_sd15())
    code, said = pull("pull", "SD1.5")
    assert code == 0
    assert said.endswith("sd15 is ready\n")
    assert pull.files("sd15") == NEEDED
    record = json.loads((pull.data / "models/sd15/latentd.json").read_text())
    assert (record["hub"], record["revision"], record["variant"]) == (SD15, "main", "fp16")
    assert record["commit"] == pull.hub.repositories[SD15].commit
    assert sorted(["latentd.json", *record["files"]]) == NEEDED
    code, said = pull("models")
    assert code == 0
    row = next(line.split() for line in said.splitlines() if line.startswith(" sd15 "))
    assert row == ["sd15", "pulled", "0.0", "GB", f"{SD15}@{record['commit'][:12]}", "creativeml-openrail-m"]


def test_a_second_pull_asks_the_hub_nothing(puller: Callable[..., Puller]) -> None:
    pull = puller(**with_sd15())
    assert pull("pull", "sd15")[0] == 0
    pull.hub.log.clear()
    assert pull("pull", "sd15") == (0, "sd15 was here already\n")
    assert pull.hub.log == []


def test_later_pulls_keep_to_the_recorded_commit_unless_told(puller: Callable[..., Puller]) -> None:
    pull = puller(**with_sd15())
    assert pull("pull", "sd15")[0] == 0
    first = pull.commit("sd15")
    pull.hub.push(SD15, sd15_files(unet=tensors(seed=8)))
    (pull.data / "models/sd15/vae/config.json").unlink()
    pull.hub.log.clear()
    assert pull("pull", "sd15")[0] == 0
    assert (pull.commit("sd15"), pull.hub.fetched()) == (first, ["vae/config.json"])
    pull.hub.log.clear()
    assert pull("pull", "sd15", "--update")[0] == 0
    assert pull.commit("sd15") == pull.hub.repositories[SD15].commit != first
    assert pull.hub.fetched() == ["unet/diffusion_pytorch_model.fp16.safetensors"]
    assert pull.files("sd15") == NEEDED


def test_a_killed_pull_goes_on_where_it_was(puller: Callable[..., Puller]) -> None:
    unet = tensors(24 * MIB)
    pull = puller(**{SD15: Repository(files=sd15_files(unet=unet))})
    pull.hub.stall_after = 21 * MIB
    process = pull.start("pull", "sd15")
    assert pull.hub.stalled.wait(60)
    stage = pull.data / "models/.sd15.part"
    # huggingface_hub hands over 10 MiB at a time.
    wait_until(lambda: any(file.stat().st_size >= 20 * MIB for file in stage.rglob("*.part")))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (pull.data / "models/sd15").exists()
    assert "sd15               partly pulled" in pull("models")[1]
    pull.hub.stall_after = None
    pull.hub.log.clear()
    # The branch has moved on meanwhile: half a file of one commit is not continued with another.
    pull.hub.push(SD15, sd15_files(unet=tensors(seed=8)))
    assert pull("pull", "sd15")[0] == 0
    commit = pull.commit("sd15")
    assert commit != pull.hub.repositories[SD15].commit
    ranges = [line for line in pull.hub.log if "bytes=" in line]
    assert ranges[0] == f"GET /{SD15}/resolve/{commit}/unet/diffusion_pytorch_model.fp16.safetensors bytes=20971520-"
    # What had come whole does not come again.
    assert "text_encoder/model.safetensors" not in pull.hub.fetched()
    assert (pull.data / "models/sd15/unet/diffusion_pytorch_model.fp16.safetensors").read_bytes() == unet
    assert pull.files("sd15") == NEEDED
    assert not stage.exists()


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize("file", ["unet/diffusion_pytorch_model.fp16.safetensors", "model_index.json"])
def test_a_file_that_arrives_damaged_is_thrown_away(puller: Callable[..., Puller], file: str) -> None:
    files = sd15_files()
    pull = puller(**with_sd15(damaged={file: bytes(len(files[file]))}))
    code, said = pull("pull", "sd15")
    assert code == 1
    assert f"{SD15}: {file} arrived damaged" in said
    assert pull.files("sd15") == []
    pull.hub.repositories[SD15].damaged.clear()
    assert pull("pull", "sd15")[0] == 0
    assert pull.files("sd15") == NEEDED


def test_a_gated_model_names_the_page_to_visit(puller: Callable[..., Puller]) -> None:
    pull = puller(**with_sd15(gated=True))
    expected = (
        f"latentd: {SD15} is gated: accept its licence at {pull.hub.address}/{SD15} "
        "and set HF_TOKEN to a token of that account\n"
    )
    assert pull("pull", "sd15") == (1, expected)
    assert pull("pull", "sd15", token="hf_other") == (1, expected)
    assert pull("pull", "sd15", token="hf_accepted")[0] == 0


def test_a_disk_that_is_too_small_is_told_with_figures_before_anything_comes(puller: Callable[..., Puller]) -> None:
    pull = puller(**with_sd15(sizes={"unet/diffusion_pytorch_model.fp16.safetensors": 10**15}))
    code, said = pull("pull", "sd15")
    assert code == 1
    assert said.startswith("latentd: sd15 needs 1000000.0 GB and 0.3 GB to spare, ")
    assert "GB free" in said
    assert pull.hub.fetched() == []


def test_a_model_over_a_base_brings_the_base(puller: Callable[..., Puller]) -> None:
    lightning = {"sdxl_lightning_4step_unet.safetensors": tensors(seed=3), "sdxl_lightning_8step.safetensors": b""}
    base = "stabilityai/stable-diffusion-xl-base-1.0"
    pull = puller(**{base: Repository(files=sdxl_files()), "ByteDance/SDXL-Lightning": Repository(files=lightning)})
    assert pull("pull", "sdxl-lightning")[0] == 0
    assert pull.files("sdxl-lightning") == ["latentd.json", "sdxl_lightning_4step_unet.safetensors"]
    assert "text_encoder_2/model.fp16.safetensors" in pull.files("sdxl")


def test_a_repository_of_no_model_file_gets_one(puller: Callable[..., Puller]) -> None:
    pull = puller(**{"some.one/Toon-1": Repository(files=sd15_files())})
    code, said = pull("pull", "some.one/Toon-1")
    assert (code, said) == (
        1,
        "latentd: some.one/Toon-1 is in no model file: say what it is with --family sd15|sdxl|flux|florence2\n",
    )
    assert pull("pull", "some.one/Toon-1", "--family", "sd15")[0] == 0
    text = (pull.data / "models/Toon-1.toml").read_text()
    assert text == 'id = "Toon-1"\nfamily = "sd15"\nsource.hub = "some.one/Toon-1"\n'
    assert pull.files("Toon-1") == NEEDED
    assert pull("pull", "toon-1") == (0, "Toon-1 was here already\n")


def test_unknown_names_are_answered_with_the_nearest(puller: Callable[..., Puller]) -> None:
    pull = puller()
    assert pull("pull", "fluks") == (1, "latentd: no model fluks; did you mean flux?\n")
    code, said = pull("pull", "sd15")
    assert (code, said) == (
        1,
        f"latentd: {pull.hub.address}/{SD15} is not there, or is private and HF_TOKEN has no access to it\n",
    )


def test_a_file_that_the_repository_lacks_is_named(puller: Callable[..., Puller]) -> None:
    files = {name: data for name, data in sd15_files().items() if not name.startswith("vae/")}
    pull = puller(**{SD15: Repository(files=files)})
    assert pull("pull", "sd15") == (1, f"latentd: {SD15}: the repository has no file vae/*\n")


def test_files_of_the_operators_own_are_not_touched(puller: Callable[..., Puller]) -> None:
    pull = puller(**with_sd15())
    folder = pull.data / "models/sd15"
    folder.mkdir(parents=True)
    (folder / "mine.json").write_text("{}")
    code, said = pull("pull", "sd15")
    assert (code, said) == (1, f"latentd: {folder} holds files that were not pulled: move them away to pull sd15\n")
    assert pull.files("sd15") == ["mine.json"]


def test_one_pull_of_a_model_at_a_time(puller: Callable[..., Puller]) -> None:
    pull = puller(**{SD15: Repository(files=sd15_files(unet=tensors(2 * MIB)))})
    pull.hub.stall_after = MIB
    first = pull.start("pull", "sd15")
    assert pull.hub.stalled.wait(60)
    assert pull("pull", "sd15") == (1, "latentd: sd15 is being pulled by another process\n")
    first.kill()
    first.communicate()


@pytest.mark.parametrize(
    ("variant", "names", "taken"),
    [
        ("fp16", "u/m.safetensors u/m.fp16.safetensors u/m.non_ema.safetensors", "u/m.fp16.safetensors"),
        ("", "u/m.safetensors u/m.fp16.safetensors", "u/m.safetensors"),
        ("", "u/m.fp16.safetensors", "u/m.fp16.safetensors"),
        (
            "fp16",
            "u/m-00001-of-00002.safetensors u/m-00002-of-00002.safetensors u/m.safetensors.index.json u/config.json",
            "u/config.json u/m-00001-of-00002.safetensors u/m-00002-of-00002.safetensors u/m.safetensors.index.json",
        ),
        (
            "fp16",
            "u/m.safetensors u/m-00001-of-00001.safetensors u/m.safetensors.index.json",
            "u/m.safetensors",
        ),
        (
            "fp16",
            "u/m.fp16-00001-of-00001.safetensors u/m.safetensors.index.fp16.json u/m-00001-of-00001.safetensors "
            "u/m.safetensors.index.json",
            "u/m.fp16-00001-of-00001.safetensors u/m.safetensors.index.fp16.json",
        ),
        (
            "fp16",
            "u/m.safetensors u/run.py u/m.bin u/m.msgpack u/deeper/m.safetensors m.safetensors",
            "u/m.safetensors",
        ),
    ],
)
def test_weights_come_in_one_precision(variant: str, names: str, taken: str) -> None:
    assert sorted(choose(names.split(), ["u/*"], variant=variant, needs_all=False)) == taken.split()


@pytest.mark.parametrize("name", ["../m.json", "u/..", "/m.json", "u\\m.json", ".git/m.json"])
def test_a_name_that_leads_out_of_the_folder_is_refused(name: str) -> None:
    with pytest.raises(PullError, match="does not stay in its folder"):
        choose([name], ["*", "*/*"], variant="", needs_all=False)
