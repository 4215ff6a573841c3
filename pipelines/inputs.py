"""Input pictures as the pipelines get them: by content hash, already decoded and converted by rule."""

from __future__ import annotations

from collections.abc import Callable

from pipelines.base import Pixels

#: SHA-256 (hex) of a stored input -> its pixels, uint8 (height, width, 3) RGB, for masks (height, width, 3) of equal
#: channels. Called on the device thread. Raises ``pipelines.errors.Error`` when the file is gone.
ReadInput = Callable[[str], Pixels]
