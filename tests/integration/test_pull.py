"""./latentd pull against a hub of our own: what is fetched, kept, compared and refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipelines.safety import CheckerFiles
from server.catalog import Catalog
from server.config import ROOT
from server.pull.choose import choose
from server.pull.errors import PullError
from tests.integration.hub import Repository
from tests.integration.puller import CHECKER, MIB, NEEDED, SD15, Puller, sd15_files, sdxl_files, start_hubs, tensors


@pytest.fixture
def puller(tmp_path: Path) -> Iterator[Callable[..., Puller]]:
    """See ``start_hubs``."""
    yield from start_hubs(tmp_path)


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
    assert row == ["sd15", "pulled", "0.0", "MB", f"{SD15}@{record['commit'][:12]}", "creativeml-openrail-m"]


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
    stage = pull.data / "models/.sd15.part"
    pull.start_and_kill("pull", "sd15", stage=stage)
    assert not (pull.data / "models/sd15").exists()
    assert "sd15               partly pulled" in pull("models")[1]
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


def test_a_lora_over_a_base_brings_the_base(puller: Callable[..., Puller]) -> None:
    lora = {"pytorch_lora_weights.safetensors": tensors(seed=3)}
    base = "stabilityai/stable-diffusion-xl-base-1.0"
    pull = puller(**{base: Repository(files=sdxl_files()), "latent-consistency/lcm-lora-sdxl": Repository(files=lora)})
    assert pull("pull", "sdxl-lcm")[0] == 0
    assert pull.files("sdxl-lcm") == ["latentd.json", "pytorch_lora_weights.safetensors"]


def test_a_model_over_a_base_brings_the_base(puller: Callable[..., Puller]) -> None:
    lightning = {"sdxl_lightning_4step_unet.safetensors": tensors(seed=3), "sdxl_lightning_8step.safetensors": b""}
    base = "stabilityai/stable-diffusion-xl-base-1.0"
    pull = puller(**{base: Repository(files=sdxl_files()), "ByteDance/SDXL-Lightning": Repository(files=lightning)})
    assert pull("pull", "sdxl-lightning")[0] == 0
    assert pull.files("sdxl-lightning") == ["latentd.json", "sdxl_lightning_4step_unet.safetensors"]
    assert "text_encoder_2/model.fp16.safetensors" in pull.files("sdxl")


def test_the_safety_checker_comes_once_with_any_model_that_draws(puller: Callable[..., Puller]) -> None:
    pull = puller(**with_sd15(), **{"some/Toon": Repository(files=sd15_files())})
    assert pull("pull", "some/Toon", "sd15", "--family", "sd15")[0] == 0
    assert pull.files("safety-checker") == CHECKER
    assert [name for name in pull.hub.fetched() if name.startswith("safety_checker/model")] == [
        "safety_checker/model.fp16.safetensors"
    ]
    catalog = Catalog.load(configs=ROOT / "configs", data=pull.data, families=["sd15"])
    assert catalog.checker() == CheckerFiles(folder=pull.data / "models/safety-checker")


def test_a_checker_that_cannot_be_had_is_a_warning(puller: Callable[..., Puller]) -> None:
    pull = puller(**{"some/Toon": Repository(files=sd15_files())})
    code, said = pull("pull", "some/Toon", "--family", "sd15")
    assert code == 0
    assert said.startswith("latentd: the safety checker was not pulled (")
    assert said.endswith("): ./latentd pull safety-checker tries again\n")
    assert (pull.data / "models/Toon.toml").is_file()


def test_no_checker_is_pulled_unwanted_or_beside_ones_own(puller: Callable[..., Puller]) -> None:
    pull = puller(**with_sd15())
    assert pull("pull", "sd15", "--no-checker")[0] == 0
    assert not any("safety_checker" in name for name in pull.hub.fetched())
    own = pull.data / "models/own"
    for name, data in sd15_files().items():
        if name.startswith(("safety_checker/", "feature_extractor/")) and not name.endswith(".bin"):
            (own / name).parent.mkdir(parents=True, exist_ok=True)
            (own / name).write_bytes(data)
    assert pull("pull", "sd15") == (0, "sd15 was here already\n")
    assert not (pull.data / "models/safety-checker").exists()


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
    assert pull("pull", "toon-1", "--no-checker") == (0, "Toon-1 was here already\n")


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
