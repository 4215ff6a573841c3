"""What a client wants its pictures to be, beside what is drawn; the same for every dialect."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.errors import InvalidRequest
from server.storage.names import MEDIA_TYPES, new_name

#: Ways to name a format, and the ending of its files.
_EXTENSIONS = {
    name: kind for kind, type_ in MEDIA_TYPES.items() for name in (kind, type_, type_.removeprefix("image/"))
}


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """The files that a job is to leave."""

    #: Key of ``server.storage.names.MEDIA_TYPES``.
    extension: str = "png"
    #: Kept for a day, whatever the settings say of other pictures.
    temporary: bool = False

    def new_names(self, count: int) -> tuple[str, ...]:
        """One for each picture."""
        return tuple(new_name(index, self.extension, temporary=self.temporary) for index in range(count))


def parse_format(text: str, *, field: str) -> str:
    """The file ending of a format as clients name it. Raises ``InvalidRequest``."""
    extension = _EXTENSIONS.get(text.strip().lower())
    if extension is None:
        raise InvalidRequest(f"{field} must be png, jpeg or webp", field=field)
    return extension
