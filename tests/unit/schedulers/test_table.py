import inspect
import json
from dataclasses import fields
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from schedulers.errors import NotATable, OptionRefused, SchedulerError, StepsRefused, UnknownScheduler
from schedulers.flow import Flow
from schedulers.registry import SCHEDULERS
from schedulers.table import compile_table
from schedulers.update import advance, blend

pytestmark = [
    # diffusers' own, when this file drives the stock objects.
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:`algorithm_types:FutureWarning"),
]

SHAPE = (1, 4, 8, 8)
STOCK = (
    "DDPM DDIM PNDM LMSDiscrete EulerDiscrete EulerAncestralDiscrete DPMSolverMultistep HeunDiscrete KDPM2Discrete "
    "DPMSolverSinglestep KDPM2AncestralDiscrete UniPCMultistep DEISMultistep LCM"
).split()
SPACED = "LMSDiscrete EulerDiscrete DPMSolverMultistep HeunDiscrete KDPM2Discrete DPMSolverSinglestep".split()
SPACED += "KDPM2AncestralDiscrete UniPCMultistep DEISMultistep".split()

#: (name, what the checkpoint says, what the user overrides, arguments of compile_table).
CASES: list[tuple[str, dict[str, Any], dict[str, Any], dict[str, Any]]] = [
    *((name, {}, {}, {}) for name in STOCK),
    *((name, {"prediction_type": "v_prediction"}, {}, {}) for name in STOCK),
    *((name, {}, {f"use_{kind}_sigmas": True}, {"sigmas": kind}) for name in SPACED for kind in ("karras", "beta")),
    *((name, {}, {"use_exponential_sigmas": True}, {"sigmas": "exponential"}) for name in SPACED[:6]),
    *(
        (name, {}, {"timestep_spacing": spacing}, {"spacing": spacing})
        for name in ("DDPM", "DDIM", "PNDM", "EulerDiscrete", "HeunDiscrete", "UniPCMultistep", "DPMSolverMultistep")
        for spacing in ("trailing", "leading", "linspace")
    ),
    *(
        (name, {"solver_order": 3}, {}, {})
        for name in ("DPMSolverMultistep", "DPMSolverSinglestep", "UniPCMultistep", "DEISMultistep")
    ),
    *(
        (f"DPMSolver{kind}step", {}, {"algorithm_type": algorithm}, {"algorithm_type": algorithm})
        for kind in ("Multi", "Single")
        for algorithm in ("dpmsolver++", "sde-dpmsolver++")
    ),
    (
        "DPMSolverMultistep",
        {},
        {"algorithm_type": "sde-dpmsolver", "final_sigmas_type": "sigma_min"},
        {"algorithm_type": "sde-dpmsolver"},
    ),
    (
        "DPMSolverSinglestep",
        {},
        {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"},
        {"algorithm_type": "dpmsolver"},
    ),
    (
        "EulerDiscrete",
        {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"},
        {},
        {},
    ),
]


def network(x, t):
    """A nonlinear stand-in for a denoiser."""
    return torch.tanh(0.7 * x + 1e-4 * float(t)) + 0.1 * x


def soft_mask():
    return torch.linspace(0, 1, 8).expand(1, 1, 8, 8)


def edit(x, t):
    """An edit of x between calls, as a mask makes it, that no sampler expects."""
    kept = torch.sin(3.0 * torch.arange(x.numel()).reshape(x.shape) + t)
    return (1 - soft_mask()) * kept + soft_mask() * x


def stock_scheduler(name, config, overrides):
    """``pipe.scheduler = Cls.from_config(pipe.scheduler.config, ...)`` on a pipeline with this configuration."""
    loaded = diffusers.PNDMScheduler.from_config(config)
    return getattr(diffusers, f"{name}Scheduler").from_config(loaded.config, **overrides)


def stock_draw(scheduler, timesteps, x, generator, edited):
    takes = inspect.signature(scheduler.step).parameters
    options = {"generator": generator} if "generator" in takes else {}
    for i, t in enumerate(timesteps):
        given = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        x = edited(scheduler.step(network(given, t), t, x, **options, return_dict=False)[0], i)
    return x


def seeded():
    return torch.Generator().manual_seed(1)


def distance(x, y):
    return float((x - y).norm() / y.norm())


@pytest.mark.parametrize(("name", "config", "overrides", "arguments"), CASES)
def test_a_table_draws_what_the_stock_scheduler_draws(name, config, overrides, arguments, sd15, draw):
    config = {**sd15, **config}
    stock = stock_scheduler(name, config, overrides)
    stock.set_timesteps(9)
    table = compile_table(name, config, 9, **arguments)
    assert table.timesteps.tolist() == stock.timesteps.to(torch.float32).tolist()
    assert table.init_scale == pytest.approx(float(stock.init_noise_sigma), rel=1e-6)
    assert table.warnings == ()
    ours, theirs = seeded(), seeded()
    x, y = (torch.randn(SHAPE, generator=generator) for generator in (ours, theirs))
    expected = stock_draw(stock, stock.timesteps, y * stock.init_noise_sigma, theirs, edit)
    assert distance(draw(table, network, x * table.init_scale, ours, edit), expected) < 1e-5
    # Both took the same number of draws, those with a coefficient of zero too.
    assert torch.equal(ours.get_state(), theirs.get_state())


@pytest.mark.parametrize("strength", [1.0, 0.55, 0.2])
@pytest.mark.parametrize("name", STOCK)
def test_a_start_in_the_middle_with_a_mask_is_what_stock_inpainting_does(name, strength, sd15, draw):
    stock, steps = stock_scheduler(name, sd15, {}), 10
    stock.set_timesteps(steps)
    first = (steps - min(int(steps * strength), steps)) * stock.order
    timesteps = stock.timesteps[first:]
    if hasattr(stock, "set_begin_index"):
        stock.set_begin_index(first)
    clean, noise = torch.randn((2, *SHAPE), generator=torch.Generator().manual_seed(5))
    mask = soft_mask()

    def keep(x, i):
        kept = clean
        if i < len(timesteps) - 1:
            kept = stock.add_noise(clean, noise, timesteps[i + 1 : i + 2])
        return (1 - mask) * kept + mask * x

    expected = stock_draw(stock, timesteps, stock.add_noise(clean, noise, timesteps[:1]), seeded(), keep)
    table = compile_table(name, sd15, steps, strength=strength)
    assert table.timesteps.tolist() == timesteps.to(torch.float32).tolist()
    begun = table.start[0] * clean + table.start[1] * noise
    kept = torch.tensor(table.blend)
    drawn = draw(table, network, begun, seeded(), lambda x, t: blend(x, clean, noise, mask, kept[t : t + 1]))
    assert distance(drawn, expected) < 1e-5
    assert table.blend[-1].tolist() == [1, 0]


@pytest.mark.parametrize("steps", [1, 2, 3, 64])
@pytest.mark.parametrize("name", ["DDIM", "PNDM", "EulerDiscrete", "DPMSolverMultistep", "UniPCMultistep", "LCM"])
def test_few_and_many_steps_agree_with_stock(name, steps, sd15, draw):
    # LCM refuses more steps than its inner schedule has, so there stock is told to have as many.
    overrides = {"original_inference_steps": 64} if name == "LCM" and steps == 64 else {}
    stock = stock_scheduler(name, sd15, {"timestep_spacing": "trailing", **overrides})
    stock.set_timesteps(steps)
    spacing = None if name == "LCM" else "trailing"
    table = compile_table(name, sd15, steps, spacing=spacing)
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(2)) * table.init_scale
    expected = stock_draw(stock, stock.timesteps, x, seeded(), edit)
    assert distance(draw(table, network, x, seeded(), edit), expected) < 1e-5


def flow_stock(name, config, steps, mu):
    """What FluxPipeline runs, with the scheduler a user would put in."""
    if name == "EulerDiscrete":
        stock = diffusers.FlowMatchEulerDiscreteScheduler.from_config(config)
        stock.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)
    elif name == "HeunDiscrete":
        stock = diffusers.FlowMatchHeunDiscreteScheduler(shift=float(np.exp(mu)))
        stock.set_timesteps(steps)
    else:
        stock = getattr(diffusers, f"{name}Scheduler").from_config(
            config, use_flow_sigmas=True, prediction_type="flow_prediction", time_shift_type="exponential"
        )
        stock.set_timesteps(steps, mu=mu)
    return stock


@pytest.mark.parametrize("strength", [None, 0.6])
@pytest.mark.parametrize("name", ["EulerDiscrete", "HeunDiscrete", "UniPCMultistep", "DPMSolverMultistep"])
def test_a_flow_table_draws_what_the_stock_scheduler_draws(name, strength, flux, draw):
    steps, mu = 9, 0.63
    stock = flow_stock(name, flux, steps, mu)
    first = int(max(steps - min(steps * (strength or 1), steps), 0)) * stock.order
    stock.set_begin_index(first)
    timesteps = stock.timesteps[first:]
    clean, noise = torch.randn((2, *SHAPE), generator=torch.Generator().manual_seed(5))
    if hasattr(stock, "scale_noise"):
        begun = stock.scale_noise(clean, timesteps[:1], noise)
    else:
        begun = stock.add_noise(clean, noise, timesteps[:1])
    expected = stock_draw(stock, timesteps, begun, seeded(), edit)
    table = compile_table(name, flux, steps, strength=strength, flow=Flow(mu=mu))
    np.testing.assert_allclose(table.timesteps, timesteps.to(torch.float32).numpy(), rtol=1e-6)
    drawn = draw(table, network, table.start[0] * clean + table.start[1] * noise, seeded(), edit)
    assert distance(drawn, expected) < 1e-5
    assert (table.init_scale, table.warnings) == (1.0, ())


def test_flux_skips_a_step_less_than_stable_diffusion(sd15, flux):
    assert compile_table("Euler", sd15, 10, strength=0.55).calls == 5
    assert compile_table("Euler", flux, 10, strength=0.55, flow=Flow(mu=0.5)).calls == 6


@pytest.mark.parametrize("name", sorted(SCHEDULERS))
def test_every_name_is_answered_on_flow_match_models(name, flux):
    table = compile_table(name, flux, 4, flow=Flow(mu=0.5))
    if SCHEDULERS[name].flow:
        assert (table.scheduler, table.warnings) == (name, ())
    else:
        told = (f"{name} has no flow-matching form; flow-match Euler was used.",)
        assert (table.scheduler, table.warnings) == ("EulerDiscreteScheduler", told)
    assert table.timesteps[0] > 990


def test_ddim_inverse_is_answered_by_ddim(sd15):
    inverse, ddim = compile_table("DDIMInverse", sd15, 8), compile_table("DDIM", sd15, 8)
    assert np.array_equal(inverse.matrices, ddim.matrices)
    assert inverse.scheduler == "DDIMScheduler"
    told = "DDIMInverseScheduler turns images into noise and cannot draw; DDIMScheduler was used."
    assert (inverse.warnings, ddim.warnings) == ((told,), ())


@pytest.mark.parametrize(
    ("name", "arguments", "told"),
    [
        ("DDIM", {"sigmas": "karras"}, "DDIMScheduler does not support karras sigmas; they were ignored."),
        (
            "UniPC",
            {"algorithm_type": "dpmsolver+++"},
            "UniPCMultistepScheduler does not support algorithm_type sde-dpmsolver++; it was ignored.",
        ),
        (
            "DPM++ 2M",
            {"algorithm_type": "deis"},
            "DPMSolverMultistepScheduler does not support algorithm_type deis; it was ignored.",
        ),
        ("LCM", {"spacing": "trailing"}, "LCMScheduler has a timestep spacing of its own; trailing was ignored."),
        ("KarrasVe", {"sigmas": "karras"}, "KarrasVeScheduler does not support karras sigmas; they were ignored."),
    ],
)
def test_an_option_the_scheduler_has_not_is_ignored_and_said(name, arguments, told, sd15):
    table = compile_table(name, sd15, 8, **arguments)
    assert table.warnings == (told,)
    assert np.array_equal(table.matrices, compile_table(name, sd15, 8).matrices)


def test_flow_solvers_keep_the_flow_levels_when_asked_for_karras_ones(flux):
    table = compile_table("DPM++ 2M Karras", flux, 8, flow=Flow(mu=0.5))
    assert table.warnings == ("DPMSolverMultistepScheduler does not support karras sigmas; they were ignored.",)
    assert compile_table("Euler Karras", flux, 8, flow=Flow(mu=0.5)).warnings == ()


def test_a_name_carries_its_options(sd15):
    carried = compile_table("DPM++ 2M SDE Karras", sd15, 8)
    spelt = compile_table("DPMSolverMultistepScheduler", sd15, 8, sigmas="karras", algorithm_type="dpmsolver+++")
    assert carried is spelt
    assert all(carried.draws)


@pytest.mark.parametrize("steps", [0, -1, 151, 1000])
def test_steps_outside_1_to_150_are_refused(steps, sd15):
    with pytest.raises(StepsRefused, match=f"^steps must be from 1 to 150, not {steps}$"):
        compile_table("Euler", sd15, steps)


@pytest.mark.parametrize(("strength", "steps"), [(0.0, 20), (0.04, 20), (-0.1, 20), (1.1, 20), (float("nan"), 20)])
def test_strengths_that_leave_nothing_to_draw_are_refused(strength, steps, sd15):
    with pytest.raises(StepsRefused, match=r"^strength"):
        compile_table("Euler", sd15, steps, strength=strength)


def test_unknown_names_and_values_are_refused_by_name(sd15):
    with pytest.raises(UnknownScheduler, match=r"^Unknown scheduler: 'Eular'$"):
        compile_table("Eular", sd15, 8)
    with pytest.raises(SchedulerError, match=r"sigmas must be one of .*'cubic'"):
        compile_table("Euler", sd15, 8, sigmas="cubic")
    with pytest.raises(SchedulerError, match=r"spacing must be one of .*'even'"):
        compile_table("Euler", sd15, 8, spacing="even")


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        ("DPMSolverMultistepScheduler", "thresholding", True),
        ("DDIMScheduler", "thresholding", True),
        ("DDPMScheduler", "variance_type", "learned_range"),
        ("DPMSolverMultistepScheduler", "variance_type", "learned"),
    ],
)
def test_options_that_bend_the_update_are_refused(name, option, value, sd15):
    with pytest.raises(OptionRefused, match=f"^{name} cannot be drawn with {option}={value!r}$"):
        compile_table(name, {**sd15, option: value}, 8)


def test_what_diffusers_refuses_is_refused_without_its_text(sd15):
    with pytest.raises(NotATable, match=r"^DDIMScheduler cannot be compiled: diffusers does not take these options"):
        compile_table("DDIM", {**sd15, "beta_schedule": "/secret/path"}, 8)


def test_a_prediction_type_that_a_sampler_of_ours_cannot_read_is_refused_by_its_public_name(sd15):
    with pytest.raises(OptionRefused, match=r"^KarrasVeScheduler cannot be drawn with prediction_type='nope'$"):
        compile_table("KarrasVe", {**sd15, "prediction_type": "nope"}, 8)


def test_clipping_is_dropped_whatever_the_checkpoint_says(sd15):
    silent = {key: value for key, value in sd15.items() if key != "clip_sample"}
    tables = [compile_table("DDIM", config, 8) for config in (sd15, silent, {**sd15, "clip_sample": True})]
    assert all(np.array_equal(table.matrices, tables[0].matrices) for table in tables)


def test_the_same_arguments_give_the_same_object(sd15):
    again = json.loads(json.dumps(dict(reversed(sd15.items()))))
    assert compile_table("Euler", sd15, 8) is compile_table("euler", again, 8)


def test_whatever_decides_the_table_decides_the_object(sd15, flux):
    tables = [
        compile_table("Euler", sd15, 8),
        compile_table("Heun", sd15, 8),
        compile_table("Euler", sd15, 9),
        compile_table("Euler", sd15, 8, strength=0.5),
        compile_table("Euler", sd15, 8, sigmas="karras"),
        compile_table("Euler", sd15, 8, spacing="trailing"),
        compile_table("Euler", {**sd15, "prediction_type": "v_prediction"}, 8),
        compile_table("Euler", {**sd15, "beta_end": 0.013}, 8),
        compile_table("Euler", flux, 8, flow=Flow(mu=0.5)),
        compile_table("Euler", flux, 8, flow=Flow(mu=0.6)),
        compile_table("Euler", flux, 8, flow=Flow(shift=3.0)),
        compile_table("DPM++ 2M", sd15, 8),
        compile_table("DPM++ 2M", sd15, 8, algorithm_type="sde-dpmsolver++"),
    ]
    facts = [(t.timesteps.tobytes(), t.matrices.tobytes(), t.input_scale.tobytes()) for t in tables]
    assert len(set(facts)) == len(tables)


def test_the_repair_of_the_first_pipelines_can_be_left_out(sd15):
    old = {**sd15, "steps_offset": 0, "timestep_spacing": "leading"}
    assert compile_table("DDIM", old, 10).timesteps[-1] == 1
    assert compile_table("DDIM", old, 10, repair=False).timesteps[-1] == 0


def test_tables_cannot_be_written_to(sd15):
    table = compile_table("Euler", sd15, 8)
    for array in (table.timesteps, table.input_scale, table.matrices, table.blend):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


@pytest.mark.parametrize("name", sorted(SCHEDULERS))
def test_a_table_has_its_shapes_and_types(name, sd15):
    table = compile_table(name, sd15, 6, strength=0.5)
    calls = table.calls
    arrays = {f.name: getattr(table, f.name) for f in fields(table) if isinstance(getattr(table, f.name), np.ndarray)}
    shapes = {key: (array.shape, array.dtype.name) for key, array in arrays.items()}
    assert shapes == {
        "timesteps": ((calls,), "float32"),
        "input_scale": ((calls,), "float32"),
        "matrices": ((calls, 4, 6), "float32"),
        "blend": ((calls, 2), "float32"),
    }
    assert len(table.draws) == len(table.norm_scaled) == calls
    assert any(table.draws) == SCHEDULERS[name].stochastic
    assert any(table.norm_scaled) == (name == "ScoreSdeVeScheduler")
    unused = table.matrices[:, 1 + table.hidden :, :], table.matrices[:, :, 1 + table.hidden : 4]
    assert not any(part.any() for part in unused)


def test_sixteen_rows_with_different_tables_need_no_scheduler_any_more(sd15, monkeypatch):
    names = [name for name in SCHEDULERS if name not in ("DDIMInverseScheduler", "KDPM2DiscreteScheduler")]
    tables = [compile_table(name, sd15, 5 + i % 4) for i, name in enumerate(names)]
    assert len(tables) == 16

    def step(*_, **__):
        raise AssertionError("a scheduler was stepped")

    for cls in {getattr(diffusers, f"{name}Scheduler") for name in STOCK}:
        monkeypatch.setattr(cls, "step", step)
    together = sample(tables)
    assert torch.isfinite(together).all()
    for row, table in enumerate(tables):
        # The network is batched too, and its tanh may round differently in another place of a vector.
        torch.testing.assert_close(together[row], sample([table], first=row)[0], rtol=1e-5, atol=1e-5)


def sample(tables, first=0):
    """All rows at once, each by its own table and at its own position, until the last is done."""
    seeds = [torch.Generator().manual_seed(first + row) for row in range(len(tables))]
    x = torch.cat(
        [torch.randn(SHAPE, generator=seed) * table.init_scale for seed, table in zip(seeds, tables, strict=True)]
    )
    hidden = torch.zeros(len(tables), 3, *SHAPE[1:])
    for t in range(max(table.calls for table in tables)):
        live = [row for row, table in enumerate(tables) if t < table.calls]
        at = [tables[row] for row in live]
        scale = torch.tensor([float(table.input_scale[t]) for table in at]).reshape(-1, 1, 1, 1)
        out = network(x[live] * scale, t)
        noise = torch.cat([torch.randn(SHAPE, generator=seeds[row]) * tables[row].draws[t] for row in live])
        stacked = torch.cat([x[live][:, None], hidden[live], out[:, None], noise[:, None]], dim=1)
        matrices = torch.from_numpy(np.stack([table.matrices[t] for table in at]))
        moved = advance(stacked, matrices, torch.tensor([table.norm_scaled[t] for table in at]))
        x[live], hidden[live] = moved[:, 0], moved[:, 1:]
    return x
