"""What was asked for, written into the picture: as AUTOMATIC1111 writes it, and as a record of our own."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from schedulers.registry import parse_name
from server.storage.formats import PARAMETERS, RECORD

#: AUTOMATIC1111's names, by scheduler and whether its algorithm is stochastic; others go by the scheduler's own name.
_SAMPLERS = {
    ("PNDMScheduler", False): "PLMS",
    ("LMSDiscreteScheduler", False): "LMS",
    ("EulerDiscreteScheduler", False): "Euler",
    ("EulerAncestralDiscreteScheduler", False): "Euler a",
    ("HeunDiscreteScheduler", False): "Heun",
    ("KDPM2DiscreteScheduler", False): "DPM2",
    ("KDPM2AncestralDiscreteScheduler", False): "DPM2 a",
    ("DPMSolverMultistepScheduler", False): "DPM++ 2M",
    ("DPMSolverMultistepScheduler", True): "DPM++ 2M SDE",
    ("DPMSolverSinglestepScheduler", False): "DPM++ 2S",
    ("DPMSolverSinglestepScheduler", True): "DPM++ SDE",
    ("UniPCMultistepScheduler", False): "UniPC",
    ("DDIMScheduler", False): "DDIM",
    ("LCMScheduler", False): "LCM",
}
#: A value with one of these stands in quotes.
_QUOTED = re.compile(r'[,:\n"]')
_PAIR = re.compile(r'\s*([\w][\w \-/]*):\s*("(?:\\.|[^\\"])*"|[^,]*)(?:,|$)')
_NEGATIVE = "Negative prompt:"
_LORA = re.compile(r"<lora:([^:<>]+)(?::([^<>]*))?>")


def texts(request: Mapping[str, Any], *, job_id: int, seed: int, scheduler: str) -> dict[str, str]:
    """The texts of one picture of a request (``ImageRequest.to_json``), by PNG keyword; ``scheduler`` drew it."""
    alone = {**request, "samples": 1, "seed": seed}
    # ASCII: prompts may hold lone surrogates, which are no UTF-8.
    record = json.dumps({"version": 1, "job": job_id, "request": alone})
    return {PARAMETERS: describe(alone, scheduler), RECORD: record}


def describe(request: Mapping[str, Any], scheduler: str) -> str:
    """AUTOMATIC1111's text: prompt, negative prompt, and a line of values."""
    loras = "".join(f" <lora:{name}:{strength:g}>" for name, strength in request.get("loras", ()))
    stochastic = (request.get("algorithm_type") or "").startswith("sde")
    sigmas = str(request.get("sigmas", "default"))
    strength = request["strength"] if request.get("image") is not None else None
    values: dict[str, object] = {
        "Steps": request["steps"],
        "Sampler": _SAMPLERS.get((scheduler, stochastic), scheduler.removesuffix("Scheduler")),
        "Schedule type": None if sigmas == "default" else sigmas.capitalize(),
        "CFG scale": f"{request['guidance']:g}",
        "Seed": request["seed"],
        "Size": f"{request['width']}x{request['height']}",
        "Model": request["model"],
        "VAE": request.get("vae"),
        "Denoising strength": None if strength is None else f"{strength:g}",
        "Clip skip": request.get("clip_skip", 1) if request.get("clip_skip", 1) > 1 else None,
        "Version": "latentd",
    }
    line = ", ".join(f"{name}: {_quoted(str(value))}" for name, value in values.items() if value is not None)
    negative = request.get("negative_prompt")
    return "\n".join([request["prompt"] + loras, *([f"{_NEGATIVE} {negative}"] if negative else []), line])


def parse(text: str) -> tuple[dict[str, object], list[str]]:
    """Fields of a ModelsLab call from AUTOMATIC1111's text, and the names of the values that have none."""
    *lines, last = text.strip().split("\n")
    values = _read_values(last)
    if "Steps" not in values:
        lines, values = [*lines, last], {}
    start = next((index for index, line in enumerate(lines) if line.startswith(_NEGATIVE)), len(lines))
    prompt, loras = _take_loras("\n".join(lines[:start]).strip())
    fields: dict[str, object] = {"prompt": prompt}
    if negative := "\n".join(lines[start:]).removeprefix(_NEGATIVE).strip():
        fields["negative_prompt"] = negative
    if loras:
        fields |= {"lora_model": [name for name, _ in loras], "lora_strength": [strength for _, strength in loras]}
    return fields | _fields_of(values), [name for name in values if name not in _KNOWN]


def _read_values(line: str) -> dict[str, str]:
    found = {name.strip(): value.strip() for name, value in _PAIR.findall(line)}
    return {name: _unquoted(value) for name, value in found.items()}


#: Values that become fields as they are.
_FIELDS = {"Steps": "num_inference_steps", "CFG scale": "guidance_scale", "Seed": "seed", "Clip skip": "clip_skip"}
_KNOWN = {*_FIELDS, "Sampler", "Schedule type", "Size", "Model", "Model hash", "Version"}


def _fields_of(values: Mapping[str, str]) -> dict[str, object]:
    fields: dict[str, object] = {field: values[name] for name, field in _FIELDS.items() if name in values}
    if "Sampler" in values:
        both = f"{values['Sampler']} {values.get('Schedule type', '')}"
        fields["scheduler"] = both if parse_name(both) is not None else values["Sampler"]
    if size := re.fullmatch(r"(\d+)x(\d+)", values.get("Size", "")):
        fields |= {"width": int(size[1]), "height": int(size[2])}
    return fields | ({"model_id": values["Model"]} if "Model" in values else {})


def _take_loras(prompt: str) -> tuple[str, list[tuple[str, str]]]:
    loras = [(name.strip(), strength or "1") for name, strength in _LORA.findall(prompt)]
    return re.sub(r"\s*" + _LORA.pattern, "", prompt) if loras else prompt, loras


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if _QUOTED.search(value) else value


def _unquoted(value: str) -> str:
    try:
        return str(json.loads(value)) if value.startswith('"') else value
    except ValueError:
        return value
