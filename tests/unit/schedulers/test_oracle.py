"""Samplers proved without a network.

Where the data are drawn from N(0.8, 0.3^2), the exact epsilon, v and flow velocity are known in closed form, and a
right sampler ends at mean 0.8 and deviation 0.3, as near as its number of steps allows.
"""

import math

import numpy as np
import pytest
import torch

from schedulers.flow import Flow
from schedulers.registry import SCHEDULERS
from schedulers.table import compile_table

MEAN, DEVIATION = 0.8, 0.3
ALPHAS = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
LOG_SIGMAS = np.log(np.sqrt((1 - ALPHAS) / ALPHAS))

#: Deviation at 50 and at 150 steps with "leading" spacing; another one than 0.3 is the sampler's own bias.
FIGURES = {
    "DDPMScheduler": (0.253, 0.280),
    "DDIMScheduler": (0.280, 0.297),
    "PNDMScheduler": (0.301, 0.305),
    "LMSDiscreteScheduler": (0.303, 0.303),
    "EulerDiscreteScheduler": (0.276, 0.293),
    "EulerAncestralDiscreteScheduler": (0.253, 0.280),
    "DPMSolverMultistepScheduler": (0.276, 0.293),
    "HeunDiscreteScheduler": (0.301, 0.301),
    "KDPM2DiscreteScheduler": (0.304, 0.301),
    "DPMSolverSinglestepScheduler": (0.270, 0.290),
    "KDPM2AncestralDiscreteScheduler": (0.314, 0.302),
    "UniPCMultistepScheduler": (0.275, 0.292),
    "DDIMInverseScheduler": (0.280, 0.297),
    "DEISMultistepScheduler": (0.310, 0.307),
    "IPNDMScheduler": (0.287, 0.296),
    "KarrasVeScheduler": (0.303, 0.302),
    "ScoreSdeVeScheduler": (0.299, 0.299),
    # Consistency sampling: each step denoises fully and noises again, which loses variance whatever their number.
    "LCMScheduler": (0.192, 0.201),
}
#: Names that draw on flow-match models, with their deviation at 50 steps.
FLOW_FIGURES = {
    "EulerDiscreteScheduler": 0.281,
    "HeunDiscreteScheduler": 0.302,
    "UniPCMultistepScheduler": 0.302,
    "DPMSolverMultistepScheduler": 0.304,
}


def epsilon(x, t):
    alpha = 1 / (1 + math.exp(2 * np.interp(t, np.arange(1000), LOG_SIGMAS)))
    return (1 - alpha) ** 0.5 * (x - alpha**0.5 * MEAN) / (alpha * DEVIATION**2 + 1 - alpha)


def v_prediction(x, t):
    alpha = 1 / (1 + math.exp(2 * np.interp(t, np.arange(1000), LOG_SIGMAS)))
    eps = epsilon(x, t)
    clean = (x - (1 - alpha) ** 0.5 * eps) / alpha**0.5
    return alpha**0.5 * eps - (1 - alpha) ** 0.5 * clean


def velocity(x, t):
    sigma = t / 1000
    gain = (1 - sigma) * DEVIATION**2 / ((1 - sigma) ** 2 * DEVIATION**2 + sigma**2)
    clean = MEAN + gain * (x - (1 - sigma) * MEAN)
    return (x - clean) / sigma


@pytest.fixture
def moments(draw):
    """moments(table, model) -> mean and deviation of what is drawn from noise."""

    def measure(table, model):
        generator = torch.Generator().manual_seed(0)
        x = table.init_scale * torch.randn(1, 4, 64, 64, generator=generator)
        drawn = draw(table, model, x, generator)
        return float(drawn.mean()), float(drawn.std())

    return measure


def test_every_name_has_its_figures():
    assert set(FIGURES) == set(SCHEDULERS)
    assert set(FLOW_FIGURES) == {name for name, spec in SCHEDULERS.items() if spec.flow}


@pytest.mark.parametrize("name", FIGURES)
def test_fifty_steps_draw_the_data(name, sd15, moments):
    # PNDM begins with a step of lower order, which on v costs a little more than on epsilon.
    for prediction_type, model, bound in (("epsilon", epsilon, 0.03), ("v_prediction", v_prediction, 0.031)):
        config = {**sd15, "timestep_spacing": "leading", "prediction_type": prediction_type}
        mean, deviation = moments(compile_table(name, config, 50), model)
        assert abs(mean - MEAN) <= bound, prediction_type
        assert abs(deviation - FIGURES[name][0]) <= 0.02, prediction_type


@pytest.mark.parametrize("name", FIGURES)
def test_a_hundred_and_fifty_steps_come_nearer(name, sd15, moments):
    mean, deviation = moments(compile_table(name, {**sd15, "timestep_spacing": "leading"}, 150), epsilon)
    # Timesteps are whole numbers: 150 steps of 6 begin at 895 of 1000, where the data are not yet all noise.
    assert abs(mean - MEAN) <= 0.035
    assert abs(deviation - FIGURES[name][1]) <= 0.005
    if name != "LCMScheduler":
        assert abs(deviation - DEVIATION) <= 0.0205


@pytest.mark.parametrize("name", FLOW_FIGURES)
def test_fifty_steps_of_flow_matching_draw_the_data(name, flux, moments):
    for flow in (Flow(mu=0.8), Flow(shift=1.0)):
        mean, deviation = moments(compile_table(name, flux, 50, flow=flow), velocity)
        assert abs(mean - MEAN) <= 0.03
        assert abs(deviation - FLOW_FIGURES[name]) <= 0.02


@pytest.mark.parametrize("name", [name for name, spec in SCHEDULERS.items() if spec.leading_fails_to])
def test_few_steps_from_leading_spacing_draw_the_data_too(name, sd15, moments):
    last = SCHEDULERS[name].leading_fails_to
    stock = compile_table(name, sd15 | {"timestep_spacing": "leading"}, last, spacing="leading")
    table = compile_table(name, sd15 | {"timestep_spacing": "leading"}, last)
    assert moments(stock, epsilon)[1] > 0.9
    assert abs(moments(table, epsilon)[0] - MEAN) <= 0.01
    assert "trailing" in table.warnings[-1]


@pytest.mark.parametrize("name", ["IPNDM", "KarrasVe", "ScoreSdeVe"])
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 6, 10])
def test_the_samplers_of_our_own_hold_at_few_steps(name, steps, sd15, moments):
    mean, deviation = moments(compile_table(name, sd15, steps), epsilon)
    assert abs(mean - MEAN) <= 0.03
    assert deviation <= 0.45
