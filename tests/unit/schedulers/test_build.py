import json

import diffusers
import pytest

from schedulers.build import Recipe, build, quiet_diffusers
from schedulers.registry import SCHEDULERS
from schedulers.table import compile_table

#: Configurations as other classes write them; each names keys that mean something else, or nothing, elsewhere.
CONFIGS = {
    "DDIM of 2022": {"_class_name": "DDIMScheduler", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1},
    "SDXL": {
        "_class_name": "EulerDiscreteScheduler",
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "clip_sample": False,
        "interpolation_type": "linear",
        "num_train_timesteps": 1000,
        "prediction_type": "epsilon",
        "sample_max_value": 1.0,
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "steps_offset": 1,
        "timestep_spacing": "leading",
        "trained_betas": None,
        "use_karras_sigmas": False,
    },
    "a DPM++ checkpoint": {
        "_class_name": "DPMSolverMultistepScheduler",
        "algorithm_type": "dpmsolver++",
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "solver_order": 3,
        "solver_type": "midpoint",
        "use_karras_sigmas": True,
        "timestep_spacing": "trailing",
    },
}


def recipe(name, config):
    return Recipe(
        name=name,
        config=json.dumps(config),
        steps=10,
        skipped=0,
        sigmas="default",
        algorithm_type=None,
        spacing=None,
        flow=None,
        repair=False,
    )


@pytest.mark.parametrize("origin", CONFIGS)
@pytest.mark.parametrize("name", [name for name, spec in SCHEDULERS.items() if spec.target.startswith("diffusers:")])
def test_the_raw_file_makes_what_from_config_makes_of_the_loaded_scheduler(name, origin):
    config, spec = CONFIGS[origin], SCHEDULERS[name]
    with quiet_diffusers():
        ours = build(recipe(name, config)).scheduler.config
        loaded = getattr(diffusers, str(config["_class_name"])).from_config(config)
        stock = getattr(diffusers, spec.target.partition(":")[2]).from_config(loaded.config, **spec.overrides)
        stock.set_timesteps(10)
    assert {key: value for key, value in ours.items() if key[0] != "_"} == {
        key: value for key, value in stock.config.items() if key in ours and key[0] != "_"
    }


def test_an_algorithm_that_another_class_meant_is_dropped():
    config = {**CONFIGS["a DPM++ checkpoint"], "algorithm_type": "sde-dpmsolver++"}
    with quiet_diffusers():
        assert build(recipe("DEISMultistepScheduler", config)).scheduler.config["algorithm_type"] == "deis"
        multistep = build(recipe("DPMSolverMultistepScheduler", config)).scheduler
    assert multistep.config["algorithm_type"] == "sde-dpmsolver++"


ZERO_SNR = {
    **CONFIGS["SDXL"],
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
    "prediction_type": "v_prediction",
}


@pytest.mark.parametrize("name", list(SCHEDULERS))
def test_a_model_of_zero_terminal_snr_is_drawn_by_a_scheduler_that_can(name: str) -> None:
    table = compile_table(name, ZERO_SNR, 10)
    assert table.scheduler in {
        "DDPMScheduler",
        "DDIMScheduler",
        "EulerDiscreteScheduler",
        "EulerAncestralDiscreteScheduler",
        "DPMSolverMultistepScheduler",
        "UniPCMultistepScheduler",
        "LCMScheduler",
    }
    replaced = table.scheduler != name and name != "DDIMInverseScheduler"
    assert any("zero terminal" in warning for warning in table.warnings) is replaced
