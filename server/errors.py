"""What the server refuses, in the tree of ``pipelines.errors``."""

from __future__ import annotations

from pipelines.errors import Error


class MissingKey(Error):
    """The request carries no API key."""

    code = "missing_key"

    def __init__(self) -> None:
        super().__init__("API key required")


class InvalidKey(Error):
    """The API key is unknown or revoked."""

    code = "invalid_key"

    def __init__(self) -> None:
        super().__init__("Invalid API key")


class Forbidden(Error):
    """The API key lacks the scope that this call needs."""

    code = "forbidden"


class NotFound(Error):
    """No such path, or nothing of the caller's own under this id."""

    code = "not_found"


class BadBody(Error):
    """The body cannot be read as what the dialect accepts."""

    code = "bad_body"


class BodyTooLarge(Error):
    """The body is longer than the server reads."""

    code = "body_too_large"


class QueueFull(Error):
    """As many jobs wait as the server or the key may have."""

    code = "queue_full"

    def __init__(self, message: str, *, retry_after_s: int = 30) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Unavailable(Error):
    """The server is starting, draining, or cannot write to its disk."""

    code = "unavailable"


class RefusedAddress(Error):
    """A URL in the request points where this server does not go."""

    code = "refused_address"
