import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from schedulers.score_sde_ve import SIGNAL_TO_NOISE
from schedulers.table import compile_table
from schedulers.update import advance, blend

SHAPE = (4, 8, 8)


class Counter(TorchDispatchMode):
    """Counts the operations that reach a device."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


def rows(count, seed=0):
    """-> stacked (R, 6, 4, 8, 8), matrices (R, 4, 6), norm_scaled (R,) for random rows."""
    generator = torch.Generator().manual_seed(seed)
    stacked = torch.randn(count, 6, *SHAPE, generator=generator)
    matrices = torch.randn(count, 4, 6, generator=generator)
    return stacked, matrices, torch.arange(count) % 3 == 0


def operations(count, *, any_norm_scaled):
    stacked, matrices, norm_scaled = rows(count)
    with Counter() as counter:
        advance(stacked, matrices, norm_scaled, any_norm_scaled=any_norm_scaled)
    return counter.names


@pytest.mark.parametrize("any_norm_scaled", [False, True])
def test_sixteen_rows_take_the_operations_of_one(any_norm_scaled):
    one = operations(1, any_norm_scaled=any_norm_scaled)
    assert len(one) > 0
    assert operations(16, any_norm_scaled=any_norm_scaled) == one


def test_blending_sixteen_rows_takes_the_operations_of_one():
    counts = []
    for count in (1, 16):
        x, clean, noise = torch.ones(3, count, *SHAPE)
        with Counter() as counter:
            blend(x, clean, noise, torch.ones(count, 1, 8, 8), torch.ones(count, 2))
        counts.append(counter.names)
    assert len(counts[0]) > 0
    assert counts[0] == counts[1]


def test_nothing_is_read_back_from_the_device():
    for any_norm_scaled in (False, True):
        assert "aten::_local_scalar_dense" not in operations(4, any_norm_scaled=any_norm_scaled)
    # Tensors without storage: reading one back would raise.
    stacked, matrices, norm_scaled = (tensor.to("meta") for tensor in rows(4))
    assert advance(stacked, matrices, norm_scaled).shape == (4, 4, *SHAPE)


def test_each_row_gets_its_own_matrix():
    stacked, matrices, _ = rows(5)
    moved = advance(stacked, matrices, torch.zeros(5, dtype=torch.bool), any_norm_scaled=False)
    expected = torch.einsum("rij,rj...->ri...", matrices.double(), stacked.double())
    torch.testing.assert_close(moved.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("any_norm_scaled", [False, True])
def test_a_row_alone_and_among_sixteen_is_the_same_to_the_bit(any_norm_scaled):
    stacked, matrices, norm_scaled = rows(16)
    together = advance(stacked, matrices, norm_scaled, any_norm_scaled=any_norm_scaled)
    alone = [
        advance(stacked[r : r + 1], matrices[r : r + 1], norm_scaled[r : r + 1], any_norm_scaled=any_norm_scaled)
        for r in range(16)
    ]
    assert torch.equal(torch.cat(alone), together)


def test_rows_that_are_not_norm_scaled_do_not_notice_those_that_are():
    stacked, matrices, norm_scaled = rows(16)
    plain = advance(stacked, matrices, norm_scaled, any_norm_scaled=False)
    mixed = advance(stacked, matrices, norm_scaled, any_norm_scaled=True)
    assert torch.equal(mixed[~norm_scaled], plain[~norm_scaled])
    assert not torch.equal(mixed[norm_scaled], plain[norm_scaled])


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_the_corrector_takes_its_step_from_the_norms(sd15, prediction_type):
    table = compile_table("ScoreSdeVe", {**sd15, "prediction_type": prediction_type}, 10)
    sigma = 1 / float(table.input_scale[4]) ** 2 - 1
    sigma = sigma**0.5
    generator = torch.Generator().manual_seed(0)
    x, out, noise = torch.randn(3, 1, *SHAPE, generator=generator, dtype=torch.float64)
    out = out * 7
    eps = out if prediction_type == "epsilon" else out / (sigma**2 + 1) ** 0.5 + x * sigma / (sigma**2 + 1)
    # Song et al. 2021, algorithm 4, with score = -eps / sigma.
    score = -eps / sigma
    step = 2 * (SIGNAL_TO_NOISE * noise.norm() / score.norm()) ** 2
    expected = x + step * score + (2 * step) ** 0.5 * noise
    stacked = torch.zeros(1, 6, *SHAPE)
    stacked[:, 0], stacked[:, 4], stacked[:, 5] = x, out, noise
    moved = advance(stacked, torch.tensor(table.matrices[4])[None], torch.tensor([True]))
    torch.testing.assert_close(moved[:, 0].double(), expected, rtol=1e-5, atol=1e-5)


def test_a_blend_repaints_where_the_mask_is_one_and_keeps_where_it_is_zero():
    generator = torch.Generator().manual_seed(0)
    x, clean, noise = torch.randn(3, 2, *SHAPE, generator=generator)
    mask = torch.zeros(2, 1, 8, 8)
    mask[:, :, :, 4:] = 1
    blended = blend(x, clean, noise, mask, torch.tensor([[0.5, 2.0], [1.0, 0.0]]))
    assert torch.equal(blended[..., 4:], x[..., 4:])
    torch.testing.assert_close(blended[0, ..., :4], (0.5 * clean + 2 * noise)[0, ..., :4])
    assert torch.equal(blended[1, ..., :4], clean[1, ..., :4])
