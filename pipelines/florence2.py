"""Florence-2: pictures to words, boxes, outlines and lines of text (Xiao et al. 2023, arXiv:2311.06242).

Its lane has one step, which does everything for all of its rows: different pictures and tasks grow their answers in one
``generate``. Pictures are read inside the step too, so that many that wait hold up nothing else.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from typing import Any, Self

import torch
from PIL import Image
from torch import Tensor

from pipelines.base import Finished, LaneKey, Pipeline, Row, of_kind
from pipelines.checkpoint import TOKENIZER_FILES, WHOLE, Checkpoint
from pipelines.device import pick_dtype
from pipelines.errors import BrokenCheckpoint, Error, InvalidRequest
from pipelines.florence2_answers import Rules, Size, read_answer, write_places
from pipelines.florence2_tasks import TASKS, Takes
from pipelines.host import Host
from pipelines.inputs import ReadInput
from pipelines.model import ModelSpec
from pipelines.placement import Part, Placement
from pipelines.request import Request
from pipelines.step import translated_memory_errors
from pipelines.vision import Answer, VisionRequest

logger = logging.getLogger(__name__)

#: Where the published networks lie in the layout of transformers' own class, by the width of their projection.
NATIVE = {768: "florence-community/Florence-2-base", 1024: "florence-community/Florence-2-large"}
#: Configurations beside the network's own; what is there must not ask for code to be run.
_CONFIGS = ("preprocessor_config.json", "processor_config.json", "tokenizer_config.json")
#: Tokens that an answer is built of.
_STRUCTURE = ("<loc_", "<sep>", "<poly>", "</poly>")


class VisionRow(Row):
    """One question in flight."""

    request: VisionRequest

    def __init__(self, *, request: VisionRequest, lane: LaneKey, tokens: list[int]) -> None:
        # A beam costs what a row without beams does.
        super().__init__(request=request, index=0, lane=lane, calls=1, entries=request.beams)
        #: What the encoder reads: places for the picture, then the question.
        self.tokens = tokens
        self.result: Answer | Error | None = None


class Florence2(Pipeline):
    """See ``Pipeline``; ``load`` opens a checkpoint."""

    def __init__(
        self,
        *,
        model: Any,
        processor: Any,
        placement: Placement,
        read_input: ReadInput | None,
    ) -> None:
        #: transformers' ``Florence2ForConditionalGeneration`` and ``Florence2Processor``.
        self.model = model
        self.processor = processor
        self._placement = placement
        self._read_input = read_input
        self._positions: int = model.config.text_config.max_position_embeddings
        self._rules = _read_rules(processor.post_processor_config)
        added: dict[str, int] = processor.tokenizer.get_added_vocab()
        self._control = {token for token in added if not token.startswith("<loc_")}
        self._silent = {number for token, number in added.items() if not token.startswith(_STRUCTURE)}

    @classmethod
    def load(cls, spec: ModelSpec, host: Host) -> Self:
        """From a folder in transformers' own layout; BrokenCheckpoint for what is not one."""
        from transformers import Florence2ForConditionalGeneration

        placement = Placement(spec.offload, host.device)
        checkpoint = Checkpoint.open(
            spec, dtype=pick_dtype(spec.dtype, host.device), device=placement.loading_device, shared=None
        )
        _refuse_other_layouts(checkpoint)
        model = checkpoint.load_module(WHOLE, Florence2ForConditionalGeneration)
        placement.add(Part.ENCODERS, model)
        return cls(model=model, processor=_load_processor(checkpoint), placement=placement, read_input=host.read_input)

    # The contract.

    def prepare(self, requests: Sequence[Request]) -> list[list[Row] | Error]:
        """See ``Pipeline.prepare``."""
        prepared: list[list[Row] | Error] = []
        for request in of_kind(requests, VisionRequest):
            try:
                prepared.append([self._row(request)])
            except Error as error:
                prepared.append(error)
        return prepared

    def _row(self, request: VisionRequest) -> Row:
        # The decoder's positions are as many as the encoder's.
        longest = min(request.max_new_tokens, self._positions)
        lane = LaneKey(model=request.model, shape=(request.beams, longest), text=0)
        return VisionRow(request=request, lane=lane, tokens=self._tokens(request))

    def _tokens(self, request: VisionRequest) -> list[int]:
        tokenizer = self.processor.tokenizer
        said: list[int] = tokenizer(self._words(request), add_special_tokens=False).input_ids
        places = [self.processor.image_token_id] * self.processor.num_image_tokens
        tokens = [*places, tokenizer.bos_token_id, *said, tokenizer.eos_token_id]
        if len(tokens) > self._positions:
            spare = self._positions - (len(tokens) - len(said))
            raise InvalidRequest(
                f"The prompt is too long: {len(said)} tokens, at most {spare} are read", field="prompt"
            )
        return tokens

    def _words(self, request: VisionRequest) -> str:
        task = TASKS[request.task]
        if task.takes is Takes.REGION:
            if request.region is None:
                raise InvalidRequest(f"{request.task} needs a region", field="region")
            return task.words.format(write_places(request.region))
        if task.takes is Takes.NOTHING:
            return task.words
        control = next((token for token in self._control if token in request.prompt), None)
        if control is not None:
            raise InvalidRequest(f"The prompt holds {control}, which means something else to the model", field="prompt")
        return task.words.format(request.prompt.strip())

    def enter(self, row: Row) -> None:
        """See ``Pipeline.enter``; a row has no state on the device between steps, for it has one step."""

    def leave(self, row: Row) -> None:
        """See ``Pipeline.leave``."""

    @torch.inference_mode()
    def step(self, rows: Sequence[Row]) -> list[Row]:
        """See ``Pipeline.step``; answers all of the rows."""
        asked = [row for row in rows if isinstance(row, VisionRow)]
        with translated_memory_errors(self._placement.device), self._placement.using(Part.ENCODERS):
            seen = {row: one for row in asked if (one := self.look(row)) is not None}
            answers = self._generate(seen) if seen else []
        for (row, (_, size)), text in zip(seen.items(), answers, strict=True):
            row.result = read_answer(text, TASKS[row.request.task].form, size, self._rules)
        for row in asked:
            row.step += 1
        return []

    def look(self, row: VisionRow) -> tuple[Tensor, Size] | None:
        """(1, 3, height, width) as the network takes it, and the picture's own size.

        None, with the reason as the row's result, where the picture is gone.
        """
        if self._read_input is None:
            row.result = InvalidRequest("this engine has no input pictures")
            return None
        try:
            pixels = self._read_input(row.request.image)
        except Error as error:
            row.result = error
            return None
        # As an image, not as an array: of one a pixel high transformers would guess that its channels come first.
        seen = self.processor.image_processor([Image.fromarray(pixels)], return_tensors="pt")
        return seen.pixel_values, (pixels.shape[1], pixels.shape[0])

    def _generate(self, seen: dict[VisionRow, tuple[Tensor, Size]]) -> list[str]:
        """One answer per row, as it was written."""
        rows = list(seen)
        beams, longest = rows[0].lane.shape
        tokens, mask = self._padded([row.tokens for row in rows])
        pictures = torch.cat([pixels for pixels, _ in seen.values()])
        written = self.model.generate(
            input_ids=tokens,
            attention_mask=mask,
            pixel_values=pictures.to(self._placement.device, self.model.dtype),
            num_beams=beams,
            do_sample=False,
            max_new_tokens=longest,
        )
        heard = [[number for number in answer if number not in self._silent] for answer in written.tolist()]
        answers: list[str] = self.processor.tokenizer.batch_decode(heard, skip_special_tokens=False)
        return answers

    def _padded(self, texts: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
        """Tokens and mask, (row, token).

        On the right: the encoder's positions are counted from the left, so that a row alone is encoded the same.
        """
        longest = max(map(len, texts))
        pad = self.processor.tokenizer.pad_token_id
        tokens = torch.tensor([[*text, *[pad] * (longest - len(text))] for text in texts])
        mask = torch.tensor([[1] * len(text) + [0] * (longest - len(text)) for text in texts])
        return tokens.to(self._placement.device), mask.to(self._placement.device)

    def finish(self, rows: Sequence[Row]) -> list[Finished | Error]:
        """See ``Pipeline.finish``."""
        results = [row.result for row in rows if isinstance(row, VisionRow)]
        return [result for result in results if result is not None]

    def close(self) -> None:
        """See ``Pipeline.close``."""
        if self._placement.device.type == "cuda":
            torch.cuda.empty_cache()


def _refuse_other_layouts(checkpoint: Checkpoint) -> None:
    """The original repositories have the same file names, and bring code of their own."""
    try:
        config = json.loads((checkpoint.folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        # Said by whoever reads it next.
        return
    language = config.get("text_config", {}).get("model_type")
    if "auto_map" not in config and language != "florence2_language":
        return
    better = NATIVE.get(config.get("projection_dim"), " or ".join(NATIVE.values()))
    raise BrokenCheckpoint(
        f"model {checkpoint.name}: this is Florence-2 in the layout of microsoft's repositories, which needs code of "
        f"theirs that is never run here; use {better} instead"
    )


def _load_processor(checkpoint: Checkpoint) -> Any:
    from transformers import Florence2Processor

    for name in _CONFIGS:
        if (checkpoint.folder / name).is_file():
            checkpoint.read_json(name)
    if not any(all((checkpoint.folder / name).is_file() for name in names) for names in TOKENIZER_FILES):
        # transformers would make one without words.
        raise BrokenCheckpoint(f"model {checkpoint.name}: its tokenizer has no vocabulary")
    try:
        processor = Florence2Processor.from_pretrained(str(checkpoint.folder), local_files_only=True)
        if not isinstance(processor.num_image_tokens, int):
            raise ValueError("image_seq_length is missing")
    except Exception as error:
        logger.warning("model %s: its processor cannot be loaded", checkpoint.name, exc_info=True)
        raise BrokenCheckpoint(
            f"model {checkpoint.name}: processor and tokenizer cannot be loaded: {checkpoint.said(error)}"
        ) from error
    return processor


def _read_rules(config: dict[str, Any] | None) -> Rules:
    rules = config or {}
    return Rules(
        banned=frozenset(rules.get("phrase_grounding", {}).get("banned_grounding_tokens", ())),
        least_area=float(rules.get("ocr", {}).get("AREA_THRESHOLD", 0.0)),
    )
