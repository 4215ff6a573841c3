"""Weights from local files, checked: a checkpoint that loads is complete and of the expected kind.

Three shapes of checkpoint: a diffusers folder; one safetensors file over a folder of configurations and tokenizers; and
either of them with the files of single components put in place of its own.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import torch

from pipelines import single_file
from pipelines.errors import BrokenCheckpoint
from pipelines.folder import find_weights
from pipelines.model import ModelSpec
from pipelines.shared import SharedComponents, identity
from pipelines.single_file import Layout
from pipelines.weight_file import WeightFile

logger = logging.getLogger(__name__)

#: The components that draw; what watches over pictures is not counted with them.
WEIGHTED = ("unet", "transformer", "vae", "text_encoder", "text_encoder_2")
#: In place of a component: the folder of a model that has none, as transformers keeps its own.
WHOLE = "."
#: One of these sets must be there, or transformers makes a tokenizer without words.
TOKENIZER_FILES = (("tokenizer.json",), ("vocab.json", "merges.txt"), ("spiece.model",))
#: Of a configuration: where it comes from, which says nothing of the module.
ORIGINS = frozenset({"_diffusers_version", "_name_or_path", "transformers_version"})
#: Libraries whose classes a model_index.json may name. Anything else would be code that comes with the weights.
LIBRARIES = ("diffusers", "transformers", "stable_diffusion", None)


class Checkpoint:
    """A model's files. Reads local files and safetensors only; nothing in them is ever executed."""

    def __init__(
        self,
        name: str,
        folder: Path,
        *,
        dtype: torch.dtype,
        device: torch.device,
        file: Path | None = None,
        components: Mapping[str, Path] = MappingProxyType({}),
        scheduler_options: Mapping[str, Any] = MappingProxyType({}),
        shared: SharedComponents | None = None,
    ) -> None:
        #: The model's id, for error texts: they must not show a path.
        self.name = name
        self.folder = folder
        self.dtype = dtype
        self.device = device
        self._file = file
        self._components = components
        self._scheduler_options = scheduler_options
        self._shared = shared
        self._opened: dict[Path, WeightFile] = {}

    @classmethod
    def open(
        cls, spec: ModelSpec, *, dtype: torch.dtype, device: torch.device, shared: SharedComponents | None = None
    ) -> Self:
        """A configured model's; BrokenCheckpoint when a named file is missing or of a format that is not read.

        ``shared``: where modules are kept that other models load from the same files; without it nothing is shared.
        """
        checkpoint = cls(
            spec.id,
            spec.folder,
            dtype=dtype,
            device=device,
            file=spec.file,
            components=spec.components,
            scheduler_options=spec.scheduler_options,
            shared=shared,
        )
        for component, path in spec.components.items():
            file = checkpoint._weights(path)
            if single_file.layout_of(component, file) is None:
                raise BrokenCheckpoint(f"model {spec.id}: {path.name} holds no {component} in a known layout")
        if spec.file is not None:
            checkpoint._weights(spec.file)
        return checkpoint

    # Configuration.

    def read_json(self, relative: str) -> dict[str, Any]:
        """A configuration file; BrokenCheckpoint when it is missing, not a JSON object, or asks for code to be run."""
        try:
            content = json.loads(self._config_file(relative).read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise BrokenCheckpoint(f"model {self.name}: {relative} is missing") from error
        except (OSError, ValueError) as error:
            raise BrokenCheckpoint(f"model {self.name}: {relative} cannot be read as JSON") from error
        if not isinstance(content, dict):
            raise BrokenCheckpoint(f"model {self.name}: {relative} is not a JSON object")
        if "auto_map" in content:
            raise BrokenCheckpoint(f"model {self.name}: {relative} has auto_map, code of its own, which is never run")
        return content

    def _config_file(self, relative: str) -> Path:
        """Within ``variants/NAME`` where a skeleton has it there for the kind of file at hand."""
        if self._file is not None:
            variant = single_file.variant_of(self._weights(self._file))
            if variant is not None and (special := self.folder / "variants" / variant / relative).is_file():
                return special
        return self.folder / relative

    def check_class(self, expected: Collection[str]) -> None:
        """``model_index.json`` must name one of these pipelines: diffusers itself loads a wrong one silently.

        Nor may it name components of libraries that are not diffusers or transformers.
        """
        index = self.read_json("model_index.json")
        found = index.get("_class_name")
        if not isinstance(found, str) or found not in expected:
            raise BrokenCheckpoint(f"model {self.name}: model_index.json is of a {found}, not {' or '.join(expected)}")
        for component, entry in index.items():
            if isinstance(entry, list) and entry and entry[0] not in LIBRARIES:
                raise BrokenCheckpoint(
                    f"model {self.name}: model_index.json wants code of its own for {component}, which is never run"
                )

    def scheduler_config(self) -> dict[str, Any]:
        """``scheduler/scheduler_config.json`` with the model's forced options."""
        config = self.read_json("scheduler/scheduler_config.json")
        if not isinstance(config.get("_class_name"), str):
            raise BrokenCheckpoint(f"model {self.name}: scheduler/scheduler_config.json names no class")
        return {**config, **self._scheduler_options}

    # Sizes.

    @property
    def index(self) -> str:
        """The file that says what the checkpoint is: diffusers', or transformers' where there is only that."""
        names = ("model_index.json", "config.json")
        return next((name for name in names if (self.folder / name).is_file()), names[0])

    def component_bytes(self, components: Collection[str] = (*WEIGHTED, WHOLE)) -> dict[str, int]:
        """What each component that the checkpoint has will take in memory, from the headers of its files."""
        if self.index == "model_index.json":
            # Beside its components a repository may hold everything once more, in one file.
            components = [component for component in components if component != WHOLE]
        width = self.dtype.itemsize
        sizes = {}
        for component in components:
            if (single := self._single(component)) is not None:
                file, layout = single
                sizes[component] = file.weight_bytes(width, single_file.names_of(layout, file))
            elif (self.folder / component).is_dir() and (found := find_weights(self.folder / component, self.name)):
                sizes[component] = sum(self._weights(path).weight_bytes(width) for path in found.files)
        return sizes

    def weight_bytes(self) -> int:
        """Bytes of all weights once loaded, in the dtype they will have."""
        return sum(self.component_bytes().values())

    # Loading.

    def load_module(self, subfolder: str, cls: Any, *, dtype: torch.dtype | None = None) -> Any:
        """A diffusers or transformers module with every weight present, on the device, in eval mode.

        ``dtype``: another than the model's, for this module.
        """
        dtype = dtype or self.dtype
        config = self.read_json(f"{subfolder}/config.json")
        self._check_code_and_class(subfolder, config, cls)
        single = self._single(subfolder)
        if single is not None:
            file, layout = single
            files = [file.path]
        else:
            found = find_weights(self.folder / subfolder, self.name)
            if found is None:
                raise BrokenCheckpoint(f"model {self.name}: {self._nowhere(subfolder)}")
            files = list(found.files)
            for path in files:
                self._weights(path)

        def load() -> Any:
            if single is not None:
                module = self._from_file(subfolder, cls, config, file, layout, dtype)
            else:
                assert found is not None
                module = self._from_folder(subfolder, cls, found.variant, dtype)
            return module.to(self.device).eval().requires_grad_(False)

        if self._shared is None:
            return load()
        # What it says, not where: models of different folders may be given the same file.
        told = json.dumps({name: config[name] for name in config if name not in ORIGINS}, sort_keys=True)
        return self._shared.get((identity(files), subfolder, told, cls, dtype, self.device), load)

    def load_tokenizer(self, subfolder: str, cls: Any) -> Any:
        """A tokenizer from its files."""
        folder = self.folder / subfolder
        if not folder.is_dir():
            raise BrokenCheckpoint(f"model {self.name}: {subfolder} is missing")
        if (folder / "tokenizer_config.json").exists():
            options = self.read_json(f"{subfolder}/tokenizer_config.json")
        else:
            options = {}
        try:
            if any(all((folder / name).is_file() for name in names) for names in TOKENIZER_FILES):
                return cls.from_pretrained(str(folder), local_files_only=True)
            if (merges := self.folder.parent / "clip" / "merges.txt").is_file() and "CLIP" in cls.__name__:
                return _clip_tokenizer(cls, merges, options)
        except Exception as error:
            logger.warning("model %s: %s cannot be loaded", self.name, subfolder, exc_info=True)
            raise BrokenCheckpoint(f"model {self.name}: {subfolder} cannot be loaded: {self.said(error)}") from error
        wanted = " or ".join(" and ".join(names) for names in TOKENIZER_FILES)
        raise BrokenCheckpoint(f"model {self.name}: {subfolder} has no vocabulary ({wanted})")

    def _check_code_and_class(self, subfolder: str, config: Mapping[str, Any], cls: Any) -> None:
        found = config.get("_class_name")
        if found is not None and found != cls.__name__:
            raise BrokenCheckpoint(f"model {self.name}: {subfolder}/config.json is of a {found}, not {cls.__name__}")
        code = next((self.folder / subfolder).glob("*.py"), None)
        if code is not None:
            raise BrokenCheckpoint(
                f"model {self.name}: {_called(subfolder)} brings code, {code.name}, which is never run"
            )

    def _from_folder(self, subfolder: str, cls: Any, variant: str | None, dtype: torch.dtype) -> Any:
        try:
            module, info = cls.from_pretrained(
                str(self.folder / subfolder),
                local_files_only=True,
                use_safetensors=True,
                dtype=dtype,
                output_loading_info=True,
                # Reported with their names, not raised without.
                ignore_mismatched_sizes=True,
                **({} if variant is None else {"variant": variant}),
            )
        except Exception as error:
            # Libraries raise OSError, ValueError, SafetensorError … for damaged files; the cause goes to the log.
            where = _called(subfolder)
            logger.warning("model %s: %s cannot be loaded", self.name, where, exc_info=True)
            raise BrokenCheckpoint(f"model {self.name}: {where} cannot be loaded: {self.said(error)}") from error
        missing = sorted(info.get("missing_keys") or ())
        # diffusers leaves what is missing on the meta device and says nothing.
        missing = missing or [name for name, value in module.state_dict().items() if value.is_meta]
        mismatched = info.get("mismatched_keys") or ()
        self._refuse(
            _called(subfolder), missing, sorted(key if isinstance(key, str) else str(key[0]) for key in mismatched)
        )
        return module

    def _from_file(
        self, subfolder: str, cls: Any, config: Mapping[str, Any], file: WeightFile, layout: Layout, dtype: torch.dtype
    ) -> Any:
        from accelerate import init_empty_weights

        told = single_file.adapted(subfolder, config, file, layout)
        where = f"{subfolder} of {file.path.name}"
        try:
            with init_empty_weights(include_buffers=False):
                module = cls.from_config(told) if hasattr(cls, "from_config") else cls(cls.config_class.from_dict(told))
            tensors = single_file.read(file, layout, told, module)
        except Exception as error:
            # A converter stumbles over a file of another model in its own ways (KeyError, IndexError …).
            logger.warning("model %s: %s cannot be loaded", self.name, where, exc_info=True)
            raise BrokenCheckpoint(f"model {self.name}: {where} cannot be loaded: {self.said(error)}") from error
        self._refuse(where, *single_file.differences(tensors, module))
        single_file.fill(module, tensors, dtype, self.device)
        return module

    def _refuse(self, where: str, missing: list[str], mismatched: list[str]) -> None:
        for problem, names in (("lacks", missing), ("has the wrong shape for", mismatched)):
            if names:
                more = f" and {len(names) - 1} more" if len(names) > 1 else ""
                raise BrokenCheckpoint(f"model {self.name}: {where} {problem} {names[0]}{more}")

    # Files.

    def _single(self, component: str) -> tuple[WeightFile, Layout] | None:
        """The component's place in a file of its own or in the model's one file; None when the folder holds it."""
        for path in (self._components.get(component), self._file):
            if path is not None:
                file = self._weights(path)
                layout = single_file.layout_of(component, file)
                if layout is not None:
                    return file, layout
        return None

    def _weights(self, path: Path) -> WeightFile:
        if path not in self._opened:
            self._opened[path] = WeightFile.open(path, self.name)
        return self._opened[path]

    def _nowhere(self, subfolder: str) -> str:
        if self._file is None:
            return f"{_called(subfolder)} holds no weights (*.safetensors)"
        return f"{self._file.name} holds no {subfolder} in a known layout, and the model has no folder with one"

    def said(self, error: Exception) -> str:
        """A library's own words without the local paths they often carry."""
        text = (str(error).strip() or type(error).__name__).split("\n")[0]
        for path in (self._file, self.folder):
            if path is not None:
                text = text.replace(str(path), path.name).replace(str(path.parent), "…")
        return " ".join(word if "/" not in word else "…" for word in text.split())[:200]


def _called(component: str) -> str:
    return "its folder" if component == WHOLE else component


def _clip_tokenizer(cls: Any, merges: Path, options: Mapping[str, Any]) -> Any:
    """CLIP's tokenizer from its merges: the vocabulary follows from them."""
    lines = merges.read_text(encoding="utf-8").splitlines()
    pairs = [(left, right) for left, right in (line.split() for line in lines if not line.startswith("#version"))]
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(code) for code in printable] + [chr(256 + index) for index in range(256 - len(printable))]
    tokens = [*letters, *(letter + "</w>" for letter in letters), *(left + right for left, right in pairs)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    known = {name: options[name] for name in ("pad_token", "model_max_length") if name in options}
    return cls(vocab={token: index for index, token in enumerate(tokens)}, merges=pairs, **known)
