"""What a request for a file says beside its path: conditions and a range (RFC 9110, 13 and 14)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from email.utils import formatdate, parsedate_to_datetime

from starlette.datastructures import Headers

#: One range of bytes; several at once are answered with the whole file, as 14.2 allows.
_RANGE = re.compile(r"bytes\s*=\s*(?:(\d{1,18})\s*-\s*(\d{0,18})|-\s*(\d{1,18}))", re.IGNORECASE | re.ASCII)


@dataclass(frozen=True, kw_only=True)
class Version:
    """What tells two states of a file apart."""

    #: With its quotes; strong.
    etag: str
    #: Unix seconds; headers have whole ones.
    modified: float

    def headers(self) -> dict[str, str]:
        """What every answer about the file carries."""
        return {"ETag": self.etag, "Last-Modified": formatdate(self.modified, usegmt=True)}

    def is_known(self, headers: Headers) -> bool:
        """The caller has it already (304); ``If-None-Match`` wins over the date."""
        if (tags := headers.get("if-none-match")) is not None:
            known = [tag.strip().removeprefix("W/") for tag in tags.split(",")]
            return "*" in known or self.etag in known
        since = _seconds(headers.get("if-modified-since"))
        return since is not None and int(self.modified) <= since

    def is_range_valid(self, headers: Headers) -> bool:
        """``If-Range`` is not there, or names this state."""
        wanted = headers.get("if-range")
        # Dates of whole seconds cannot tell two changes within one second apart, so only a tag is believed.
        return wanted is None or wanted.strip() == self.etag


def find_range(headers: Headers, size: int) -> range | None:
    """The bytes asked for, cut at the end of the file; empty if none are in it (416); None for the whole file.

    What is no range of bytes is ignored, as 14.2 demands.
    """
    found = _RANGE.fullmatch(headers.get("range", "").strip())
    if found is None:
        return None
    first, last, suffix = found.groups()
    if suffix is not None:
        return range(max(size - int(suffix), 0), size)
    if last and int(last) < int(first):
        return None
    return range(int(first), min(int(last) + 1, size) if last else size)


def _seconds(text: str | None) -> float | None:
    try:
        return parsedate_to_datetime(text or "").timestamp()
    except (ValueError, TypeError, OverflowError):
        return None
