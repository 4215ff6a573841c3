"""Values as clients send them: numbers as strings, booleans in any spelling, null and "" for "not given"."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from pipelines.errors import InvalidRequest

_INTEGER = re.compile(r"[+-]?[0-9]{1,400}")
_NUMBER = re.compile(r"[+-]?([0-9]{1,400}\.?[0-9]{0,400}|\.[0-9]{1,400})([eE][+-]?[0-9]{1,4})?")
_YES = frozenset({"yes", "true", "1", "on", "y", "t"})
_NO = frozenset({"no", "false", "0", "off", "n", "f", "none", "null"})
#: Words that some languages' string conversion makes of a missing number.
_NOTHING = frozenset({"null", "none", "undefined"})
_INT64 = 2**63


def is_given(value: object) -> bool:
    """Neither null nor a blank string."""
    return value is not None and not (isinstance(value, str) and not value.strip())


def as_flag(value: object) -> bool | None:
    """True or False in any usual spelling; None for anything else."""
    if isinstance(value, bool):
        return value
    if not isinstance(value, str | int | float):
        return None
    word = f"{value:g}" if isinstance(value, float) else str(value).strip().lower()
    return True if word in _YES else False if word in _NO else None


def as_number(value: object) -> int | float | None:
    """A finite number, exact for integers; None for anything else, booleans too."""
    if isinstance(value, str):
        text = value.strip()
        if _INTEGER.fullmatch(text):
            return int(text)
        value = float(text) if _NUMBER.fullmatch(text) else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if math.isfinite(value) else None


class Fields:
    """One call's fields. A field that is given in neither place reads as None.

    Every method takes a name and its aliases, of which the first given one counts, and raises ``InvalidRequest``
    for a value of the wrong kind.
    """

    def __init__(self, body: Mapping[str, object], query: Mapping[str, object]) -> None:
        self._places = (body, query)

    def raw(self, *names: str) -> object:
        """The value as it came; None if not given."""
        for place in self._places:
            for name in names:
                if is_given(value := place.get(name)):
                    return value
        return None

    def text(self, *names: str, limit: int) -> str | None:
        """A string of at most ``limit`` characters."""
        value = self.raw(*names)
        if value is None:
            return None
        if not isinstance(value, str):
            raise InvalidRequest(f"{names[0]} must be a string", field=names[0])
        if len(value) > limit:
            raise InvalidRequest(f"{names[0]} must be at most {limit} characters long", field=names[0])
        return value

    def choice(self, *names: str, limit: int) -> str | None:
        """A string, as ``text``; any way of saying no or nothing reads as None."""
        value = self.raw(*names)
        if as_flag(value) is False or (isinstance(value, str) and value.strip().lower() in _NOTHING):
            return None
        return self.text(*names, limit=limit)

    def listed(self, *names: str) -> list[object]:
        """A list, or a string of parts between commas, each part without the blanks around it; not given: empty.

        What stands between two commas may be "", so that lists which belong together stay so.
        """
        value = self.raw(*names)
        parts = value.split(",") if isinstance(value, str) else value if isinstance(value, list) else [value]
        return [] if value is None else [part.strip() if isinstance(part, str) else part for part in parts]

    def picture(self, *names: str) -> str | None:
        """URL, data URI or base64; of a list the first."""
        value = self.raw(*names)
        if isinstance(value, list):
            value = next((one for one in value if is_given(one)), None)
        if value is not None and not isinstance(value, str):
            raise InvalidRequest(f"{names[0]} must be a string", field=names[0])
        return value

    def number(self, *names: str) -> float | None:
        """A number that 64 bits can hold."""
        value = self.raw(*names)
        if value is None or (isinstance(value, str) and value.strip().lower() in _NOTHING):
            return None
        number = as_number(value)
        if number is None:
            raise InvalidRequest(f"{names[0]} must be a number", field=names[0])
        if abs(number) >= _INT64:
            raise InvalidRequest(f"{names[0]} is out of range", field=names[0])
        return number

    def integer(self, *names: str) -> int | None:
        """A whole number that 64 bits can hold; a fraction is cut off."""
        number = self.number(*names)
        return None if number is None else int(number)

    def flag(self, *names: str) -> bool | None:
        """Yes or no."""
        value = self.raw(*names)
        if value is None:
            return None
        flag = as_flag(value)
        if flag is None:
            raise InvalidRequest(f"The {names[0]} field must be true or false", field=names[0])
        return flag

    def seed(self) -> int | None:
        """0 .. 2**63 - 1; None, so a random one, for what is negative or no number."""
        value = self.raw("seed")
        if isinstance(value, list | dict):
            raise InvalidRequest("seed must be an integer", field="seed")
        number = as_number(value)
        if number is None or number < 0:
            return None
        if number >= _INT64:
            raise InvalidRequest("seed must be less than 2^63", field="seed")
        return int(number)

    def scalar(self, name: str, *, limit: int) -> str | int | float | bool | None:
        """A string, number or boolean of the type it came with."""
        value = self.raw(name)
        if value is None or isinstance(value, int | float):
            return value
        return self.text(name, limit=limit)
