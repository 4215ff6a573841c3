"""What the checker flags is replaced, and nothing else is touched."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines.base import Pixels
from pipelines.errors import BrokenCheckpoint, OutOfMemory
from pipelines.safety import (
    CARD,
    CHECK_ROWS,
    DETAILS,
    INK,
    REPLACEMENTS,
    Checked,
    CheckerFiles,
    SafetyChecker,
    refuse_unchecked,
)

SIZES = ((64, 64), (1024, 1024), (64, 512), (512, 64))


@pytest.fixture(scope="module")
def checker(sd15_folder: Path) -> SafetyChecker:
    return SafetyChecker.load(CheckerFiles(folder=sd15_folder), torch.device("cpu"))


def noise(height: int = 64, width: int = 64, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def red(height: int = 64, width: int = 64) -> Pixels:
    return np.full((height, width, 3), (255, 0, 0), dtype=np.uint8)


def halves(height: int, width: int) -> Pixels:
    """Bright above, dark below, both full of details."""
    pixels = noise(height, width) // 2
    pixels[: height // 2] += 128
    return pixels


def check(checker: SafetyChecker, pictures: list[Pixels], name: str = "black") -> list[Checked]:
    checked = checker.check(pictures, [name] * len(pictures))
    assert all(isinstance(one, Checked) for one in checked)
    return [one for one in checked if isinstance(one, Checked)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", REPLACEMENTS)
def test_a_replacement_is_a_picture_of_the_same_size(name: str, size: tuple[int, int]) -> None:
    pixels = halves(*size)
    before = pixels.copy()
    replaced = REPLACEMENTS[name](pixels)
    assert replaced.shape == pixels.shape
    assert replaced.dtype == np.dtype(np.uint8)
    assert not np.array_equal(replaced, pixels)
    assert np.array_equal(pixels, before)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["blur", "pixelate"])
def test_hidden_pictures_keep_colours_and_lose_details(name: str, size: tuple[int, int]) -> None:
    pixels = halves(*size)
    replaced = REPLACEMENTS[name](pixels)
    top, bottom = replaced[: size[0] // 4], replaced[-size[0] // 4 :]
    assert abs(float(top.mean()) - float(pixels[: size[0] // 4].mean())) < 12
    assert float(top.mean()) - float(bottom.mean()) > 90
    assert top.std() < pixels[: size[0] // 4].std() / 3


def test_pixelated_pictures_are_a_few_squares() -> None:
    assert len(np.unique(REPLACEMENTS["pixelate"](noise(96, 96)).reshape(-1, 3), axis=0)) <= DETAILS**2


def test_black_is_black() -> None:
    assert not REPLACEMENTS["black"](noise()).any()


@pytest.mark.parametrize("size", SIZES)
def test_the_card_says_so_in_letters_that_fit(size: tuple[int, int]) -> None:
    card = REPLACEMENTS["sensitive_content_text"](noise(*size))
    assert np.array_equal(card, REPLACEMENTS["sensitive_content_text"](red(*size)))
    rows, columns = np.nonzero(card[..., 0] > (CARD + INK) // 2)
    tall, wide = np.ptp(rows) + 1, np.ptp(columns) + 1
    assert max(wide / size[1], tall / size[0]) > 0.6
    assert wide < size[1] and tall < size[0]
    assert len(rows) / (tall * wide) > 0.1
    for edge in (card[0], card[-1], card[:, 0], card[:, -1]):
        assert (edge == CARD).all()


def test_only_flagged_pictures_are_replaced(checker: SafetyChecker) -> None:
    pictures = [noise(), red(), np.zeros_like(red()), red()]
    kept = [pixels.copy() for pixels in pictures]
    checked = check(checker, pictures)
    assert [one.flagged for one in checked] == [False, True, False, True]
    assert not checked[1].pixels.any() and not checked[3].pixels.any()
    assert np.array_equal(checked[0].pixels, kept[0]) and np.array_equal(checked[2].pixels, kept[2])
    assert all(map(np.array_equal, pictures, kept))


def test_each_picture_has_a_replacement_of_its_own(checker: SafetyChecker) -> None:
    names = list(REPLACEMENTS)
    checked = checker.check([red()] * len(names), names)
    for name, one in zip(names, checked, strict=True):
        assert isinstance(one, Checked)
        assert np.array_equal(one.pixels, REPLACEMENTS[name](red()))


def test_a_picture_is_judged_in_company_as_it_is_alone(checker: SafetyChecker) -> None:
    mixed = [noise(seed=number) // 8 + (red() // 8) * 7 for number in range(CHECK_ROWS)]
    pictures = [one for pair in zip(mixed, [red()] * CHECK_ROWS, strict=True) for one in pair] + [noise(seed=99)]
    together = [one.flagged for one in check(checker, pictures)]
    assert together == [check(checker, [one])[0].flagged for one in pictures]
    assert True in together and False in together


def test_the_verdicts_are_stocks(checker: SafetyChecker, sd15_folder: Path) -> None:
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(str(sd15_folder), local_files_only=True)
    pictures = [red(96, 64), noise(96, 64), halves(96, 64), np.full((96, 64, 3), (240, 10, 5), dtype=np.uint8)]
    stacked = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2) / 127.5 - 1
    _, verdicts = pipe.run_safety_checker(stacked, "cpu", torch.float32)
    assert checker.flags(pictures) == verdicts


class Narrow(SafetyChecker):
    """Has memory for ``fits`` pictures."""

    fits = 0

    def flags(self, pictures: object) -> list[bool]:
        assert isinstance(pictures, list)
        if len(pictures) > self.fits:
            raise OutOfMemory("too little memory")
        return [bool(pixels[0, 0, 0] == 255) for pixels in pictures]


def test_pictures_that_do_not_fit_together_are_looked_at_in_parts(sd15_folder: Path) -> None:
    narrow = Narrow(CheckerFiles(folder=sd15_folder), None, None)
    narrow.fits = 1
    assert [one.flagged for one in check(narrow, [red(), np.zeros_like(red()), red()])] == [True, False, True]


def test_a_picture_that_cannot_be_looked_at_is_an_error(sd15_folder: Path) -> None:
    narrow = Narrow(CheckerFiles(folder=sd15_folder), None, None)
    assert [type(one) for one in narrow.check([red(), red()], ["black"] * 2)] == [OutOfMemory] * 2


def test_without_a_checker_nothing_gets_through() -> None:
    with pytest.raises(BrokenCheckpoint, match="weights are not here"):
        refuse_unchecked([red()], ["black"])


def test_a_damaged_checker_is_named_without_a_path(sd15_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "sd15"
    shutil.copytree(sd15_folder / "safety_checker", folder / "safety_checker")
    with pytest.raises(BrokenCheckpoint, match=r"feature_extractor/preprocessor_config\.json is missing") as caught:
        SafetyChecker.load(CheckerFiles(folder=folder), torch.device("cpu"))
    assert str(tmp_path) not in str(caught.value)
