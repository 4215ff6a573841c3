"""configs/aux: what is shipped, and what is said about files that are wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.auxiliary import AuxiliaryKind
from pipelines.ip_adapter import IP_ADAPTERS
from pipelines.registry import FAMILIES
from server.catalog import Catalog
from server.catalog.auxiliary_files import KINDS, read_auxiliary_files
from server.config import ROOT, ConfigError
from server.pull.auxiliary import auxiliary_home
from server.pull.home import OneFile, OwnFolder

LORA = 'id = "toon"\nkind = "lora"\n'
SOURCE = '[source]\nhub = "some/toon"\nfiles = ["toon.safetensors"]\n'


def read(tmp_path: Path, **texts: str) -> object:
    (tmp_path / "aux").mkdir()
    for stem, text in texts.items():
        (tmp_path / "aux" / f"{stem}.toml").write_text(text)
    return read_auxiliary_files(tmp_path)


def test_every_shipped_one_says_where_it_comes_from_and_lies_in_its_kinds_folder(tmp_path: Path) -> None:
    files = read_auxiliary_files(ROOT / "configs")
    assert {path.stem for path in (ROOT / "configs/aux").glob("*.toml")} == set(files)
    for one in files.values():
        assert one.licence
        home, kind = auxiliary_home(one, tmp_path), KINDS[one.kind]
        assert home.folder.is_relative_to(tmp_path / (kind.value if kind else "models"))
        assert isinstance(home, OwnFolder) == (one.kind in ("vae", "image_encoder", "safety_checker"))
        assert not isinstance(home, OneFile) or home.file.name == f"{one.id}.safetensors"


def test_every_ip_adapter_that_is_built_can_be_pulled_with_its_encoder() -> None:
    files = read_auxiliary_files(ROOT / "configs")
    shipped = {one.id: (one.family, one.needs) for one in files.values() if one.kind == "ip_adapter"}
    assert shipped == {id_: (facts.family, [facts.encoder]) for id_, facts in IP_ADAPTERS.items()}
    assert all(files[facts.encoder].kind == "image_encoder" for facts in IP_ADAPTERS.values())


def test_no_shipped_name_is_a_models_too(tmp_path: Path) -> None:
    catalog = Catalog.load(configs=ROOT / "configs", data=tmp_path, families=FAMILIES)
    assert [name for name in read_auxiliary_files(ROOT / "configs") if catalog.find_configured(name)] == []


def test_every_kind_of_look_up_can_be_pulled() -> None:
    assert {kind for kind in KINDS.values() if kind is not None} == set(AuxiliaryKind)


def test_the_readme_lists_the_shipped_ones() -> None:
    section = (ROOT / "docs" / "models.md").read_text().partition("\n## Beside models\n")[2].partition("\n## ")[0]
    rows = [[cell.strip(" `") for cell in line.split("|")[1:-1]] for line in section.splitlines() if "| `" in line]
    told = {row[0]: row[1:] for row in rows if len(row) == 4}
    real = {}
    for one in read_auxiliary_files(ROOT / "configs").values():
        origin = "a .pth to convert" if one.source is None else one.source.hub
        needs = "".join(f", needs `{name}" for name in one.needs)
        real[one.id] = [one.kind, origin + needs, one.licence]
    assert told == real


def test_the_readme_lists_the_folders() -> None:
    section = (ROOT / "docs" / "models.md").read_text().partition("\n## Beside models\n")[2].partition("\n## ")[0]
    told = {
        line.split("|")[1].strip(" `") for line in section.splitlines() if line.startswith("| `") and "/` |" in line
    }
    assert told == {f"{kind.value}/" for kind in AuxiliaryKind}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (LORA + "needz = []\n" + SOURCE, "toon.toml: unknown key needz; did you mean needs?"),
        (LORA + SOURCE + "fils = []\n", "toon.toml: unknown key source.fils; did you mean files?"),
        (LORA + '[pickle]\nurll = "x"\n', "toon.toml: unknown key pickle.urll; did you mean url?"),
        ('id = "toon"\nkind = "lara"\n' + SOURCE, "kind = 'lara' is not usable: no such kind; did you mean lora?"),
        (LORA + 'family = "sdx"\n' + SOURCE, "no such family; did you mean sdxl?"),
        ('id = "a/b"\nkind = "lora"\n' + SOURCE, "toon.toml: id = 'a/b' is not usable"),
        ('id = "../b"\nkind = "lora"\n' + SOURCE, "toon.toml: id = '../b' is not usable"),
        (LORA, "toon.toml: one of [source] and [pickle] is needed"),
        (LORA + SOURCE.replace("files", "variant").replace('["', '"').replace('"]', '"'), "source.files is needed"),
        (LORA + '[pickle]\nlicence = "mit"\nurl = "https://x.org/a.exe"\n', "must be an https:// address of a file"),
        (LORA + 'needs = ["tune"]\n' + SOURCE, "needs = 'tune' is not in configs/aux; did you mean toon?"),
        (LORA + 'needs = ["toon"]\n' + SOURCE, "needs = 'toon' needs others itself"),
    ],
)
def test_wrong_files_are_told_in_one_sentence(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, toon=text)
    assert expected in str(caught.value)


def test_two_of_one_id_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"b\.toml: the name 'Toon' is taken by .*a\.toml"):
        read(tmp_path, a=LORA + SOURCE, b=LORA.replace("toon", "Toon") + SOURCE)
