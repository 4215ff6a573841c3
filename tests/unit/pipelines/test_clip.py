"""Texts of any length, weighted, from any layer: against the encoders themselves."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pipelines.base import Row
from pipelines.clip import MAX_CHUNKS
from pipelines.emphasis import Piece
from pipelines.errors import Error
from pipelines.model import ModelSpec
from pipelines.request import ImageRequest

if TYPE_CHECKING:
    import torch

    from pipelines.flux import Flux
    from pipelines.sd15 import StableDiffusion15
    from pipelines.sdxl import StableDiffusionXL

LONG = "dog " * 100


def wish(**changes: Any) -> ImageRequest:
    values: dict[str, Any] = {"model": "sd15", "prompt": "a red cat", "negative_prompt": "blurry", "seed": 1}
    return ImageRequest(**{"width": 64, "height": 64, "steps": 4, "guidance": 5.0, **values, **changes})


def row(pipeline: Any, **changes: Any) -> Any:
    (rows,) = pipeline.prepare([wish(**changes)])
    assert not isinstance(rows, Error), rows
    return rows[0]


def text(pipeline: Any, prompt: str, **changes: Any) -> torch.Tensor:
    found: torch.Tensor = row(pipeline, prompt=prompt, **changes).encoded.positive["text"]
    return found


def stock_ids(pipeline: Any, prompt: str, second: bool = False) -> torch.Tensor:
    encoder = pipeline._text_encoder_2 if second else pipeline._text_encoder
    found: torch.Tensor = encoder._tokenizer(
        [prompt], padding="max_length", max_length=77, truncation=True, return_tensors="pt"
    ).input_ids
    return found


@pytest.fixture(scope="module")
def sdxl(demo_folder: Path) -> StableDiffusionXL:
    import torch

    from pipelines import demo
    from pipelines.host import Host
    from pipelines.sdxl import StableDiffusionXL

    spec = ModelSpec(id="sdxl", family="sdxl", folder=demo.ensure("sdxl", demo_folder))
    return StableDiffusionXL.load(spec, Host(device=torch.device("cpu"), slots=8))


@pytest.fixture(scope="module")
def flux(demo_folder: Path) -> Flux:
    import torch

    from pipelines import demo
    from pipelines.flux import Flux
    from pipelines.host import Host

    spec = ModelSpec(id="flux", family="flux", folder=demo.ensure("flux", demo_folder))
    return Flux.load(spec, Host(device=torch.device("cpu"), slots=8))


@pytest.mark.parametrize("prompt", ["", "a red cat", "ein Kätzchen 🐈", "dog " * 75, "a, b:2", r"\\ back \slash"])
@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_without_weights_and_within_a_chunk_it_is_stocks_bit_for_bit(
    family: str, prompt: str, request: pytest.FixtureRequest
) -> None:
    import torch

    pipeline = request.getfixturevalue(family)
    ours = row(pipeline, prompt=prompt, reproducible=True).encoded.positive
    with torch.inference_mode():
        first = pipeline._text_encoder.model(stock_ids(pipeline, prompt), output_hidden_states=True)
        if family == "sd15":
            assert torch.equal(ours["text"], first[0][0])
            return
        second = pipeline._text_encoder_2.model(stock_ids(pipeline, prompt, second=True), output_hidden_states=True)
    assert torch.equal(ours["text"], torch.cat((first.hidden_states[-2], second.hidden_states[-2]), dim=-1)[0])
    assert torch.equal(ours["pooled"], second[0][0])


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_escaped_brackets_and_a_weight_of_one_are_read_as_plain_text(
    family: str, request: pytest.FixtureRequest
) -> None:
    import torch

    pipeline = request.getfixturevalue(family)
    assert torch.equal(
        text(pipeline, "a (red:1) cat", reproducible=True), text(pipeline, "a red cat", reproducible=True)
    )
    escaped = text(pipeline, r"a \(red\) cat")
    assert not torch.allclose(escaped, text(pipeline, "a red cat"))


@pytest.mark.parametrize("prompt", ["a red cat", "ein Kätzchen 🐈, 8k", "  spaces   and\nlines ", "don't"])
def test_chunks_are_put_together_as_the_tokenizers_do(sdxl: StableDiffusionXL, prompt: str) -> None:
    for encoder in (sdxl._text_encoder, sdxl._text_encoder_2):
        (stock,) = encoder.chunks(prompt)
        assert encoder._split((Piece(prompt),), ()) == [stock]


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_a_long_text_is_its_chunks_one_after_another(family: str, request: pytest.FixtureRequest) -> None:
    import torch

    pipeline = request.getfixturevalue(family)
    long = row(pipeline, prompt=LONG)
    first, second = text(pipeline, "dog " * 75), text(pipeline, "dog " * 25)
    torch.testing.assert_close(long.encoded.positive["text"], torch.cat((first, second)), rtol=1e-5, atol=1e-5)
    assert (long.lane.text, long.warnings) == (154, ())
    broken = text(pipeline, "a cat BREAK a dog")
    torch.testing.assert_close(
        broken, torch.cat((text(pipeline, "a cat"), text(pipeline, "a dog"))), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
@pytest.mark.parametrize("sides", [{"prompt": LONG}, {"negative_prompt": LONG}])
def test_the_shorter_side_goes_on_with_empty_chunks(
    family: str, sides: dict[str, str], request: pytest.FixtureRequest
) -> None:
    import torch

    pipeline = request.getfixturevalue(family)
    encoded = row(pipeline, **sides).encoded
    short = encoded.negative if "prompt" in sides else encoded.positive
    assert encoded.positive["text"].shape == encoded.negative["text"].shape
    torch.testing.assert_close(short["text"][77:], text(pipeline, ""), rtol=1e-5, atol=1e-5)


def test_a_negative_prompt_left_out_is_zeros_of_the_same_length(sdxl: StableDiffusionXL) -> None:
    encoded = row(sdxl, prompt=LONG, negative_prompt=None).encoded
    assert encoded.negative["text"].shape == encoded.positive["text"].shape
    assert not encoded.negative["text"].any()


def test_rows_of_different_lengths_are_in_different_lanes_and_are_drawn(sd15: StableDiffusion15) -> None:
    prepared = sd15.prepare([wish(prompt=LONG), wish(negative_prompt=LONG), wish(), wish(prompt="(cat:1.3)")])
    rows: list[Row] = [one for rows in prepared if isinstance(rows, list) for one in rows]
    assert [one.lane.text for one in rows] == [154, 154, 77, 77]
    assert rows[0].lane == rows[1].lane != rows[2].lane == rows[3].lane
    for lane in (rows[:2], rows[2:]):
        for one in lane:
            sd15.enter(one)
        while lane[0].remaining:
            assert not sd15.step(lane)
        assert not any(isinstance(result, Error) for result in sd15.finish(lane))
        for one in lane:
            sd15.leave(one)


@pytest.mark.parametrize("weight", [0.5, 1.3])
def test_weights_multiply_their_tokens_and_the_mean_is_restored(sdxl: StableDiffusionXL, weight: float) -> None:
    import torch

    plain, weighted = text(sdxl, "a red cat"), text(sdxl, f"a (red:{weight}) cat")
    # Start, a, red, cat, end: red is the third.
    factors = torch.ones(77, 1)
    factors[2] = weight
    width = sdxl._text_encoder.model.config.hidden_size
    for ours, stock in zip(
        weighted.split((width, plain.shape[1] - width), 1), plain.split((width, plain.shape[1] - width), 1), strict=True
    ):
        expected = stock * factors
        torch.testing.assert_close(ours, expected * (stock.mean() / expected.mean()), rtol=1e-4, atol=1e-4)
    assert torch.equal(
        row(sdxl, prompt="a red cat", reproducible=True).encoded.positive["pooled"],
        row(sdxl, prompt=f"a (red:{weight}) cat", reproducible=True).encoded.positive["pooled"],
    )


def test_a_mean_of_nothing_is_not_divided_by() -> None:
    import torch

    from pipelines.clip import weigh

    hidden = torch.randn(7, 16, generator=torch.Generator().manual_seed(0))
    centred = hidden - hidden.mean(1, keepdim=True)
    weights = (1.0, 1.3, 1.3, 0.5, 1.0, 1.0, 1.0)
    torch.testing.assert_close(weigh(centred, weights), centred * torch.tensor(weights)[:, None])
    assert not weigh(hidden, (0.0,) * 7).any()
    assert weigh(hidden, None) is hidden


@pytest.mark.parametrize("clip_skip", [1, 2, 3, 8])
def test_clip_skip_counts_layers_from_the_last_one_on_both_prompts(
    sd15: StableDiffusion15, sdxl: StableDiffusionXL, clip_skip: int
) -> None:
    import torch

    encoded = row(sd15, clip_skip=clip_skip, reproducible=True).encoded
    other = row(sdxl, clip_skip=clip_skip, reproducible=True).encoded
    with torch.inference_mode():
        for side, prompt in ((encoded.positive, "a red cat"), (encoded.negative, "blurry")):
            model = sd15._text_encoder.model
            out = model(stock_ids(sd15, prompt), output_hidden_states=True)
            assert torch.equal(side["text"], model.final_layer_norm(out.hidden_states[-clip_skip])[0])
        for side, prompt in ((other.positive, "a red cat"), (other.negative, "blurry")):
            layers = [
                encoder.model(stock_ids(sdxl, prompt, second), output_hidden_states=True).hidden_states
                for encoder, second in ((sdxl._text_encoder, False), (sdxl._text_encoder_2, True))
            ]
            joined = torch.cat([states[-max(clip_skip, 2)] for states in layers], dim=-1)
            assert torch.equal(side["text"], joined[0])


def test_clip_skip_and_weights_are_kept_apart(sd15: StableDiffusion15, sdxl: StableDiffusionXL) -> None:
    import torch

    mixed = sd15.prepare([wish(clip_skip=skip, prompt=prompt) for skip in (1, 2, 3) for prompt in ("cat", "(cat:1.3)")])
    texts = [rows[0].encoded.positive["text"] for rows in mixed if isinstance(rows, list)]  # type: ignore[attr-defined]
    assert len(texts) == 6
    assert not any(torch.allclose(a, b) for i, a in enumerate(texts) for b in texts[:i])
    sdxl.prepare([wish(prompt="only here", clip_skip=1)])
    misses = sdxl.cache.misses
    sdxl.prepare([wish(prompt="only here", clip_skip=2)])
    assert sdxl.cache.misses == misses


def test_a_text_beyond_all_chunks_is_cut_and_said_to_be(sd15: StableDiffusion15) -> None:
    tokens = 75 * MAX_CHUNKS
    short, long = row(sd15, prompt="dog " * tokens), row(sd15, prompt="dog " * (tokens + 1))
    assert (short.warnings, long.warnings) == ((), (f"prompt was cut to its first {tokens} tokens",))
    assert short.lane.text == long.lane.text == 77 * MAX_CHUNKS
    assert row(sd15, negative_prompt="a BREAK " * 40).warnings == (
        f"negative_prompt was cut to its first {tokens} tokens",
    )


def test_flux_reads_the_text_without_weights_and_says_so(flux: Flux) -> None:
    import torch

    plain = row(flux, model="flux", prompt="a red cat (small)".replace("(small)", r"\(small\)"), reproducible=True)
    weighted = row(flux, model="flux", prompt=r"a ((red:1.3)) cat \(small\)", reproducible=True, clip_skip=3)
    assert plain.warnings == ()
    assert weighted.warnings == ("prompt weights were not used: flux has none",)
    for name in ("text", "pooled"):
        assert torch.equal(plain.encoded.positive[name], weighted.encoded.positive[name])
