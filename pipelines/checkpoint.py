"""Weights from a local diffusers folder, checked: a checkpoint that loads is complete and of the expected kind."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch

from pipelines.errors import BrokenCheckpoint

logger = logging.getLogger(__name__)


class Checkpoint:
    """A diffusers folder. Reads local files and safetensors only; nothing in it is ever executed."""

    def __init__(self, name: str, folder: Path, *, dtype: torch.dtype, device: torch.device) -> None:
        #: The model's id, for error texts: they must not show a path.
        self.name = name
        self.folder = folder
        self.dtype = dtype
        self.device = device

    def read_json(self, relative: str) -> dict[str, Any]:
        """A configuration file; BrokenCheckpoint when it is missing or not a JSON object."""
        try:
            content = json.loads((self.folder / relative).read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise BrokenCheckpoint(f"model {self.name}: {relative} is missing") from error
        except (OSError, ValueError) as error:
            raise BrokenCheckpoint(f"model {self.name}: {relative} cannot be read as JSON") from error
        if not isinstance(content, dict):
            raise BrokenCheckpoint(f"model {self.name}: {relative} is not a JSON object")
        return content

    def check_class(self, expected: Collection[str]) -> None:
        """``model_index.json`` must name one of these pipelines: diffusers itself loads a wrong one silently."""
        found = self.read_json("model_index.json").get("_class_name")
        if found not in expected:
            raise BrokenCheckpoint(f"model {self.name}: model_index.json is of a {found}, not {' or '.join(expected)}")

    def scheduler_config(self) -> dict[str, Any]:
        """``scheduler/scheduler_config.json``."""
        config = self.read_json("scheduler/scheduler_config.json")
        if not isinstance(config.get("_class_name"), str):
            raise BrokenCheckpoint(f"model {self.name}: scheduler/scheduler_config.json names no class")
        return config

    def load_module(self, subfolder: str, cls: Any) -> Any:
        """A diffusers or transformers module with every weight present, on the device, in eval mode."""
        folder = self.folder / subfolder
        if not (folder / "config.json").is_file():
            raise BrokenCheckpoint(f"model {self.name}: {subfolder}/config.json is missing")
        try:
            module, info = cls.from_pretrained(
                str(folder), local_files_only=True, use_safetensors=True, dtype=self.dtype, output_loading_info=True
            )
        except Exception as error:
            # Libraries raise OSError, ValueError, SafetensorError … for damaged files; the cause goes to the log.
            logger.warning("model %s: %s cannot be loaded", self.name, subfolder, exc_info=True)
            raise BrokenCheckpoint(f"model {self.name}: {subfolder} cannot be loaded: {_first_line(error)}") from error
        missing = sorted(info.get("missing_keys") or ())
        mismatched = sorted(str(key) for key in info.get("mismatched_keys") or ())
        meta = [name for name, value in module.state_dict().items() if value.is_meta]
        for problem, names in (("lacks", missing or meta), ("has the wrong shape for", mismatched)):
            if names:
                more = f" and {len(names) - 1} more" if len(names) > 1 else ""
                raise BrokenCheckpoint(f"model {self.name}: {subfolder} {problem} {names[0]}{more}")
        return module.to(self.device).eval().requires_grad_(False)

    def load_tokenizer(self, subfolder: str, cls: Any) -> Any:
        """A tokenizer from its files."""
        if not (self.folder / subfolder).is_dir():
            raise BrokenCheckpoint(f"model {self.name}: {subfolder} is missing")
        try:
            return cls.from_pretrained(str(self.folder / subfolder), local_files_only=True)
        except Exception as error:
            logger.warning("model %s: %s cannot be loaded", self.name, subfolder, exc_info=True)
            raise BrokenCheckpoint(f"model {self.name}: {subfolder} cannot be loaded: {_first_line(error)}") from error

    def check_config(self, module: Any, subfolder: str, field: str, expected: object) -> None:
        """A value of a loaded module's configuration must be the family's."""
        found = module.config.get(field) if isinstance(module.config, dict) else getattr(module.config, field, None)
        if found != expected:
            raise BrokenCheckpoint(f"model {self.name}: {subfolder} has {field} {found}, not {expected}")


def _first_line(error: Exception) -> str:
    """A library's own words without the local path they often carry."""
    text = str(error).strip().split("\n")[0]
    return " ".join(word if "/" not in word else "…" for word in text.split())[:200] or type(error).__name__
