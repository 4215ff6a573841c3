"""The styles of the checkout, and the operator's over them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipelines.emphasis import is_plain, parse
from pipelines.styles import PromptStyle
from server.config import ROOT, ConfigError
from server.styles import StyleFiles

CONFIGS = ROOT / "configs" / "styles.toml"
OURS = '[enhance]\nsuffix = "fine"\n[styles.ink]\nprefix = "ink"\n[styles.clay]\nsuffix = "clay"\n'


@pytest.fixture
def own(tmp_path: Path) -> Path:
    file = tmp_path / "own.toml"
    file.write_text(OURS)
    return file


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "styles.toml"


def write(file: Path, text: str) -> None:
    file.write_text(text)
    # A file that is written twice within a tick of the clock has changed all the same.
    status = file.stat()
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + len(text) + 1))


def test_the_checkouts_styles_have_words_that_mean_what_they_say() -> None:
    styles = StyleFiles.load(CONFIGS, Path("nowhere")).current()
    assert len(styles.named) >= 40
    assert styles.enhance.suffix
    for style in styles.named.values():
        assert style.prefix or style.suffix
        assert all(is_plain(parse(words)) for words in (style.prefix, style.suffix, style.negative))


def test_the_operators_styles_are_added_and_win(own: Path, file: Path) -> None:
    files = StyleFiles.load(own, file)
    assert set(files.current().named) == {"ink", "clay"}
    write(file, '[styles.ink]\nsuffix = "wet"\n[styles.fur]\nnegative = "bald"\n')
    assert files.current().named == {
        "ink": PromptStyle(suffix="wet"),
        "clay": PromptStyle(suffix="clay"),
        "fur": PromptStyle(negative="bald"),
    }
    assert files.current().enhance == PromptStyle(suffix="fine")
    write(file, '[enhance]\nsuffix = "finer"\n')
    assert (files.current().enhance, set(files.current().named)) == (PromptStyle(suffix="finer"), {"ink", "clay"})
    file.unlink()
    assert files.current().enhance == PromptStyle(suffix="fine")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[style.ink]", "unknown key style; did you mean styles?"),
        ("[styles.ink]\nsufix = 'x'", "unknown key styles.ink.sufix; did you mean suffix?"),
        ("[styles.'Pixel Art']", "must be in lower case with hyphens: 'pixel-art'"),
        ("[styles.ink]\nsuffix = 3", "styles.ink.suffix = 3 is not usable"),
        ("[styles", "not valid TOML"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_and_changes_nothing(
    own: Path, file: Path, caplog: pytest.LogCaptureFixture, text: str, said: str
) -> None:
    files = StyleFiles.load(own, file)
    before = files.current()
    write(file, text)
    assert files.current() == before == files.current()
    assert len(caplog.messages) == 1 and said in caplog.messages[0]
    with pytest.raises(ConfigError):
        StyleFiles.load(file, own)
