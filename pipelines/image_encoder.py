"""CLIP's picture encoder, as IP-Adapters read pictures with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import torch
from PIL import Image
from torch import Tensor

from pipelines.base import Pixels
from pipelines.checkpoint import Checkpoint
from pipelines.shared import SharedComponents

#: The layer that adapters read places from: the last but one, as with texts.
_LAYER = -2


class ImageEncoder:
    """A loaded encoder. The device thread alone uses it."""

    def __init__(self, model: Any) -> None:
        from transformers import CLIPImageProcessor

        self.model = model
        self._side = model.config.image_size
        # CLIP's own defaults, which published encoders were trained with; stock makes it so too.
        self._processor = CLIPImageProcessor(size=self._side, crop_size=self._side)

    @classmethod
    def load(
        cls, folder: Path, *, dtype: torch.dtype, device: torch.device, shared: SharedComponents | None = None
    ) -> Self:
        """From a folder with config.json and weights; BrokenCheckpoint says which file is wrong and how."""
        from transformers import CLIPVisionModelWithProjection

        checkpoint = Checkpoint("image encoder", folder.parent, dtype=dtype, device=device, shared=shared)
        return cls(checkpoint.load_module(folder.name, CLIPVisionModelWithProjection))

    def width(self, *, places: bool) -> int:
        """Of what ``read`` gives."""
        config = self.model.config
        return int(config.hidden_size if places else config.projection_dim)

    @torch.inference_mode()
    def read(self, picture: Pixels | None, *, places: bool) -> Tensor:
        """The whole picture's embedding (width,), or the states of its ``places``, (places, width).

        None: no picture, which for an embedding is zeros, for places what the encoder makes of zeros.
        """
        if picture is None:
            seen = torch.zeros(1, 3, self._side, self._side)
        else:
            seen = self._processor(Image.fromarray(picture), return_tensors="pt").pixel_values
        seen = seen.to(self.model.device, self.model.dtype)
        if places:
            states: Tensor = self.model(seen, output_hidden_states=True).hidden_states[_LAYER][0]
            return states.clone()
        if picture is None:
            return seen.new_zeros(self.model.config.projection_dim)
        embedding: Tensor = self.model(seen).image_embeds[0]
        return embedding.clone()
