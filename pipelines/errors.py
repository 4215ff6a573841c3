"""The one error tree: each class has a code, and ``str(error)`` is safe to show to a client."""

from __future__ import annotations


class Error(Exception):
    """Anything latentd refuses or fails at; the text names the offending value and never a path or a secret."""

    #: Stable, machine-readable name; the dialects map it to a status.
    code = "internal"


class InvalidRequest(Error):
    """A field of the request has a value that cannot be drawn."""

    code = "invalid_request"

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        #: The wire-independent field name (``prompt``, ``width`` …), where one field is to blame.
        self.field = field


class UnknownModel(Error):
    """No configured model has this id or alias."""

    code = "unknown_model"

    def __init__(self, name: str) -> None:
        super().__init__(f"Model not found: {name[:100]}")
        self.name = name


class BrokenCheckpoint(Error):
    """Weights that are missing, damaged or of another kind than the model's configuration says."""

    code = "broken_checkpoint"


class ModelTooLarge(Error):
    """A model's weights alone are more than the memory that is set aside for weights."""

    code = "model_too_large"


class NonFinite(Error):
    """A row's latents became NaN or infinite."""

    code = "non_finite"


class OutOfMemory(Error):
    """One row alone does not fit the device."""

    code = "out_of_memory"


class DeadlineExceeded(Error):
    """The request's deadline passed before its last step."""

    code = "deadline_exceeded"


class Cancelled(Error):
    """The request was cancelled by its owner."""

    code = "cancelled"


class CheckerMissing(Error):
    """The server draws nothing unchecked, and has nothing to check with."""

    code = "unavailable"

    def __init__(self) -> None:
        super().__init__("The safety checker's weights are not here, and this server draws nothing without it.")
