import importlib
import inspect
import subprocess
import sys

import pytest

from schedulers.registry import SCHEDULERS, Alias, parse_algorithm, parse_name

PUBLIC = (
    "DDPM DDIM PNDM LMSDiscrete EulerDiscrete EulerAncestralDiscrete DPMSolverMultistep HeunDiscrete KDPM2Discrete "
    "DPMSolverSinglestep KDPM2AncestralDiscrete UniPCMultistep DDIMInverse DEISMultistep IPNDM KarrasVe ScoreSdeVe LCM"
).split()


def test_the_eighteen_public_names_are_there_and_no_other():
    assert sorted(SCHEDULERS) == sorted(f"{name}Scheduler" for name in PUBLIC)


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_is_read_in_any_dress(name):
    split = f" {name[:3]}_{name[3:]}-scheduler "
    dresses = (name, f"{name}Scheduler", name.lower(), name.upper(), split, f"{name} Scheduler")
    assert {parse_name(dress) for dress in dresses} == {Alias(f"{name}Scheduler")}


@pytest.mark.parametrize(
    ("text", "name", "sigmas", "algorithm_type"),
    [
        ("DPM++ 2M", "DPMSolverMultistepScheduler", "default", None),
        ("DPM++ 2M Karras", "DPMSolverMultistepScheduler", "karras", None),
        ("DPM++ 2M SDE", "DPMSolverMultistepScheduler", "default", "sde-dpmsolver++"),
        ("DPM++ 2M SDE Karras", "DPMSolverMultistepScheduler", "karras", "sde-dpmsolver++"),
        ("DPM++ 2M SDE Exponential", "DPMSolverMultistepScheduler", "exponential", "sde-dpmsolver++"),
        ("DPM++ SDE", "DPMSolverSinglestepScheduler", "default", "sde-dpmsolver++"),
        ("DPM++ SDE Karras", "DPMSolverSinglestepScheduler", "karras", "sde-dpmsolver++"),
        ("DPM++ 2S a Karras", "DPMSolverSinglestepScheduler", "karras", None),
        ("DPM2", "KDPM2DiscreteScheduler", "default", None),
        ("DPM2 Karras", "KDPM2DiscreteScheduler", "karras", None),
        ("DPM2 a", "KDPM2AncestralDiscreteScheduler", "default", None),
        ("DPM2 a Karras", "KDPM2AncestralDiscreteScheduler", "karras", None),
        ("Euler", "EulerDiscreteScheduler", "default", None),
        ("Euler Beta", "EulerDiscreteScheduler", "beta", None),
        ("Euler a", "EulerAncestralDiscreteScheduler", "default", None),
        ("Heun", "HeunDiscreteScheduler", "default", None),
        ("LMS", "LMSDiscreteScheduler", "default", None),
        ("LMS Karras", "LMSDiscreteScheduler", "karras", None),
        ("PLMS", "PNDMScheduler", "default", None),
        ("UniPC", "UniPCMultistepScheduler", "default", None),
        ("euler_ancestral", "EulerAncestralDiscreteScheduler", "default", None),
        ("dpmpp_2m_sde_gpu", "DPMSolverMultistepScheduler", "default", "sde-dpmsolver++"),
        ("dpm_2_ancestral", "KDPM2AncestralDiscreteScheduler", "default", None),
        ("uni_pc", "UniPCMultistepScheduler", "default", None),
        ("K_EULER_ANCESTRAL", "EulerAncestralDiscreteScheduler", "default", None),
        ("K_DPMPP_2M", "DPMSolverMultistepScheduler", "default", None),
        ("KarrasDPM", "DPMSolverMultistepScheduler", "karras", None),
    ],
)
def test_names_of_other_programs_are_read(text, name, sigmas, algorithm_type):
    assert parse_name(text) == Alias(name, sigmas, algorithm_type)


@pytest.mark.parametrize("text", ["", " ", "k", "karras", "Scheduler", "DPM adaptive", "euler b", "none", "default"])
def test_other_texts_are_no_names(text):
    assert parse_name(text) is None


@pytest.mark.parametrize(
    ("text", "algorithm_type"),
    [
        (None, None),
        ("", None),
        ("none", None),
        ("No", None),
        ("dpmsolver+++", "sde-dpmsolver++"),
        ("sde-dpmsolver+++", "sde-dpmsolver++"),
        ("SDE-DPMSolver++", "sde-dpmsolver++"),
        ("dpmsolver++", "dpmsolver++"),
        ("dpmsolver", "dpmsolver"),
    ],
)
def test_algorithm_types_are_read_as_clients_write_them(text, algorithm_type):
    assert parse_algorithm(text) == algorithm_type


def test_the_registry_costs_neither_torch_nor_diffusers():
    code = "import sys, schedulers.registry; print(sorted({'torch', 'diffusers', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("name", sorted(SCHEDULERS))
def test_a_row_agrees_with_the_class_it_names(name):
    spec = SCHEDULERS[name]
    module, _, cls = spec.target.partition(":")
    taken = set(inspect.signature(getattr(importlib.import_module(module), cls).__init__).parameters)
    sigmas = {kind for kind in ("karras", "exponential", "beta") if f"use_{kind}_sigmas" in taken}
    # DEIS has the option, and none of the values that clients ask for.
    algorithms = "algorithm_type" in taken and name != "DEISMultistepScheduler"
    assert (sigmas, algorithms) == (set(spec.sigmas), bool(spec.algorithms))
    assert set(spec.overrides) <= taken
    assert not spec.spaced or "timestep_spacing" in taken
