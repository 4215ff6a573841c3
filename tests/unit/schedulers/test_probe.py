import threading
import uuid
import warnings
from concurrent.futures import ThreadPoolExecutor

import diffusers
import numpy as np
import pytest
import torch
from diffusers.utils import torch_utils

from schedulers.build import Built
from schedulers.errors import NotATable
from schedulers.table import compile_table, read_table


class Halving:
    """A scheduler that a table can hold; the others here spoil it in one way each."""

    order, init_noise_sigma = 1, 1.0

    def __init__(self, steps=6):
        self.config = {}
        self.timesteps = torch.arange(steps, 0, -1, dtype=torch.float32)
        self.known = []

    def add_noise(self, clean, noise, timestep):
        return clean + timestep * noise

    def step(self, out, timestep, sample, *, return_dict):
        self.known.append(out)
        return (self.move(out, sample),)

    def move(self, out, sample):
        return sample / 2 - out


class Clipping(Halving):
    def move(self, out, sample):
        return (sample / 2 - out).clamp(-1, 1)


class Squaring(Halving):
    def move(self, out, sample):
        return sample / 2 - out * out.abs()


class RememberingFour(Halving):
    def move(self, out, sample):
        return sample / 2 - sum(0.9**i * known for i, known in enumerate(self.known[-5:]))


class DrawingTwice(Halving):
    def move(self, out, sample):
        return sample / 2 - out + torch.randn(out.shape) + torch.randn(out.shape)


class NotANumber(Halving):
    def move(self, out, sample):
        return sample / 0


def fresh(config):
    """The same configuration under another key of the cache."""
    return {**config, "_diffusers_version": str(uuid.uuid4())}


def read(scheduler):
    return read_table(Built(scheduler=scheduler, name="Own", warnings=()), 0)


def test_a_linear_scheduler_is_read_exactly():
    table = read(Halving())
    matrix = np.zeros((4, 6), dtype=np.float32)
    matrix[0, 0], matrix[0, 4] = 0.5, -1
    assert np.array_equal(table.matrices, np.broadcast_to(matrix, (6, 4, 6)))
    assert (table.draws, table.hidden, table.start) == ((False,) * 6, 0, (1.0, 6.0))
    assert table.blend.tolist() == [[1, 5], [1, 4], [1, 3], [1, 2], [1, 1], [1, 0]]


@pytest.mark.parametrize(
    ("scheduler", "reason"),
    [
        (Clipping(), r"its table is .* off"),
        (Squaring(), r"its table is .* off"),
        (NotANumber(), "its steps are not finite"),
        (RememberingFour(steps=9), "it remembers more than three tensors"),
        (DrawingTwice(), "it draws noise twice in one step"),
    ],
)
def test_a_scheduler_that_is_no_table_is_refused(scheduler, reason):
    with pytest.raises(NotATable, match=f"^Own cannot be compiled: {reason}$"):
        read(scheduler)


def test_other_threads_keep_their_noise_while_one_is_probing():
    others = []

    class DrawingForOthers(Halving):
        def move(self, out, sample):
            thread = threading.Thread(target=lambda: others.append(torch.randn(5, generator=seeded())))
            thread.start()
            thread.join()
            return sample / 2 - out + torch.randn(out.shape)

    def seeded():
        return torch.Generator().manual_seed(7)

    table = read(DrawingForOthers())
    assert table.draws == (True,) * 6
    assert len(others) == 6
    assert all(torch.equal(drawn, torch.randn(5, generator=seeded())) for drawn in others)


def test_nothing_is_left_patched(sd15):
    modules = (diffusers.schedulers.scheduling_ddpm, diffusers.schedulers.scheduling_euler_ancestral_discrete)
    before = list(warnings.filters)
    compile_table("DDPM", fresh(sd15), 5)
    compile_table("Euler a", fresh(sd15), 5)
    with pytest.raises(NotATable):
        read(DrawingTwice())
    assert {module.randn_tensor for module in modules} == {torch_utils.randn_tensor}
    assert warnings.filters == before
    torch.manual_seed(3)
    drawn = torch.randn(8)
    assert torch.equal(drawn, torch.randn(8, generator=torch.Generator().manual_seed(3)))


def test_threads_that_compile_at_once_get_what_one_gets(sd15):
    names = ["DDPM", "Euler a", "LCM", "DPM++ 2M SDE", "KarrasVe", "ScoreSdeVe", "UniPC", "Heun"]
    alone = [compile_table(name, sd15, 7) for name in names]
    other = fresh(sd15)
    with ThreadPoolExecutor(len(names)) as pool:
        together = list(pool.map(lambda name: compile_table(name, other, 7), names))
    for one, another in zip(alone, together, strict=True):
        assert one is not another
        assert np.array_equal(one.matrices, another.matrices)
        assert (one.draws, one.start) == (another.draws, another.start)
