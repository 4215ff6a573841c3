"""Textual inversions: layouts, words in texts, refusals, and what encoders read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from pipelines.auxiliary import find_in
from pipelines.clip import ClipEncoder
from pipelines.demo import clip
from pipelines.errors import InvalidRequest
from pipelines.inversion import Inversion, Inversions, occurring, split_at

WIDTHS = {"text_encoder": 32}
BOTH = {"text_encoder": 32, "text_encoder_2": 48}


def inversions(folder: Path, widths: dict[str, int] = WIDTHS) -> Inversions:
    return Inversions(widths, most=75, find=lambda name: find_in(folder, name))


def vectors(count: int, width: int = 32, seed: int = 1) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def inversion(*words: str, count: int = 2) -> Inversion:
    return Inversion(key=words, words=words, vectors={"text_encoder": vectors(count)})


@pytest.fixture(scope="module")
def encoder() -> ClipEncoder:
    torch.manual_seed(0)
    with torch.no_grad():
        return ClipEncoder(clip.tokenizer(), clip.text_encoder(layers=2).requires_grad_(False), normed=True)


# Files


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"<cat-toy>": vectors(1)[0]}, ("toy", "<cat-toy>")),
        ({"emb_params": vectors(3)}, ("toy",)),
        ({"clip_l": vectors(3), "clip_g": vectors(3, 48)}, ("toy",)),
    ],
    ids=["diffusers", "automatic1111", "sdxl"],
)
def test_layouts(tmp_path: Path, tensors: dict[str, Tensor], words: tuple[str, ...]) -> None:
    save_file(tensors, tmp_path / "toy.safetensors")
    found = inversions(tmp_path, BOTH if "clip_g" in tensors else WIDTHS).get("toy.safetensors", "sd15")
    assert found.words == words
    for tensor, ours in zip(tensors.values(), found.vectors.values(), strict=True):
        assert torch.equal(ours, tensor.reshape(-1, tensor.shape[-1]))


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"a": vectors(1, 48)}, "Embedding mine is not for sd15: its vectors have 48 numbers, not 32"),
        (
            {"clip_l": vectors(1), "clip_g": vectors(1, 48)},
            "Embedding mine is not for sd15: its vectors have 32 and 48 numbers, not 32",
        ),
        ({"a": vectors(76)}, "Embedding mine has 76 vectors, and a text has room for 75"),
        ({"a": vectors(1), "b": vectors(1)}, "Embedding mine is not supported: it holds no vectors of a word"),
        ({"a": torch.tensor(1.0)}, "Embedding mine is not supported: it holds no vectors of a word"),
    ],
)
def test_what_a_model_cannot_read_is_refused_with_its_name(
    tmp_path: Path, tensors: dict[str, Tensor], said: str
) -> None:
    save_file(tensors, tmp_path / "mine.safetensors")
    with pytest.raises(InvalidRequest) as caught:
        inversions(tmp_path).get("mine", "sd15")
    assert (str(caught.value), caught.value.field) == (said, "embeddings")


@pytest.mark.parametrize("name", ["nothing", "../a", "", "*"])
def test_names_that_lead_nowhere(tmp_path: Path, name: str) -> None:
    save_file({"a": vectors(1)}, tmp_path / "a.safetensors")
    with pytest.raises(InvalidRequest, match="Embedding not found: "):
        inversions(tmp_path / "inner").get(name, "sd15")


def test_a_file_that_changes_is_another_inversion(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    save_file({"a": vectors(1)}, file)
    known = inversions(tmp_path)
    before = known.get("a", "sd15")
    assert known.get("a", "sd15") is before
    save_file({"a": vectors(2)}, file)
    assert known.get("a", "sd15") != before


# Words


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", []),
        ("a cat", ["a cat"]),
        ("a toy cat", ["a ", 0, " cat"]),
        ("Toy, tOY", [0, ", ", 0]),
        ("a toyshop and toy_2", ["a toyshop and toy_2"]),
        ("a toy-2.5, toy", ["a ", 1, ", ", 0]),
        ("a<cat-toy>b", ["a", 0, "b"]),
    ],
)
def test_words_are_found_whole_in_any_case_and_the_longest_first(text: str, parts: list[str | int]) -> None:
    known = (inversion("toy", "<cat-toy>"), inversion("toy-2.5"))
    expected = [known[part] if isinstance(part, int) else part for part in parts]
    assert list(split_at(text, known)) == expected


def test_words_occur_in_what_is_read_not_in_its_syntax() -> None:
    known = (inversion("toy"), inversion("old (style)"), inversion("other"))
    assert occurring(r"((toy:1.2)), old \(style\)", known) == known[:2]


# What is read


def ids(encoder: ClipEncoder, text: str) -> list[int]:
    tokens: list[int] = encoder._tokenizer(text, add_special_tokens=False).input_ids
    return tokens


def test_vectors_stand_where_the_word_stands(encoder: ClipEncoder) -> None:
    toy = inversion("toy", count=3)
    (chunk,) = encoder.chunks("a red (toy:1.5) cat", [toy])
    before, after = ids(encoder, "a red"), ids(encoder, "cat")
    assert chunk.ids[1 : len(before) + 4 + len(after)] == (*before, 0, 0, 0, *after)
    places = range(len(before) + 1, len(before) + 4)
    assert [place for place, _ in chunk.vectors] == list(places)
    assert torch.equal(torch.stack([vector for _, vector in chunk.vectors]), toy.vectors["text_encoder"])
    assert chunk.weights is not None and {chunk.weights[place] for place in places} == {1.5}


def test_the_vectors_of_a_word_are_never_torn_apart(encoder: ClipEncoder) -> None:
    toy = inversion("toy", count=50)
    first, second = encoder.chunks("toy, toy", [toy])
    assert (len(first.vectors), len(second.vectors)) == (50, 50)
    assert [place for place, _ in second.vectors] == list(range(1, 51))
    assert encoder.is_cut("toy, " * 33, [toy]) and not encoder.is_cut("toy, " * 32, [toy])


@torch.inference_mode()
def test_only_texts_that_name_an_inversion_are_read_with_it(encoder: ClipEncoder) -> None:
    toy = inversion("toy")
    texts = ["a red cat", "a red toy", "a red dog"]
    plain = encoder.read([encoder.chunks(text) for text in texts], clip_skip=1, overlays=[None] * 3)
    mixed = encoder.read([encoder.chunks(text, [toy]) for text in texts], clip_skip=1, overlays=[None] * 3)
    assert [torch.equal(one.hidden, other.hidden) for one, other in zip(plain, mixed, strict=True)] == [
        True, False, True,
    ]  # fmt: skip
    again = encoder.read([encoder.chunks(text) for text in texts], clip_skip=1, overlays=[None] * 3)
    assert torch.equal(plain[1].hidden, again[1].hidden)


@torch.inference_mode()
def test_vectors_are_read_as_a_larger_vocabulary_would_be(encoder: ClipEncoder) -> None:
    import copy

    toy = inversion("toy")
    other: Any = copy.deepcopy(encoder.model)
    table = other.get_input_embeddings()
    count = table.num_embeddings
    table.weight = torch.nn.Parameter(torch.cat((table.weight, toy.vectors["text_encoder"])), requires_grad=False)
    (chunk,) = encoder.chunks("a toy", [toy])
    read = [*chunk.ids]
    for number, (place, _) in enumerate(chunk.vectors):
        read[place] = count + number
    (found,) = encoder.read([[chunk]], clip_skip=1, overlays=[None])
    assert torch.equal(found.hidden, other(torch.tensor([read])).last_hidden_state[0])
