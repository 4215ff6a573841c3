"""What is written around a prompt when a client asks for a better one: words of the operator's, no text model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class PromptStyle:
    """Words around a prompt."""

    #: In front of it, and behind it.
    prefix: str = ""
    suffix: str = ""
    #: Behind the negative prompt.
    negative: str = ""


@dataclass(frozen=True, kw_only=True)
class PromptStyles:
    """All that a server offers."""

    #: What a prompt gets that is to be enhanced in no particular way.
    enhance: PromptStyle = PromptStyle()
    #: By name, in lower case with hyphens.
    named: Mapping[str, PromptStyle] = field(default_factory=dict)

    def find(self, name: str) -> str | None:
        """The key of ``named`` that is meant: "Pixel Art" and "pixel_art" are pixel-art."""
        key = spelled(name)
        return key if key in self.named else None


def spelled(name: str) -> str:
    """A style's name as keys are: in lower case, with hyphens."""
    return "-".join(name.lower().replace("_", " ").replace("-", " ").split())


def styled(prompt: str, negative: str | None, style: PromptStyle) -> tuple[str, str | None]:
    """Prompt and negative prompt with the style's words, commas between.

    Nothing is put inside the client's own brackets, so that weights stay what they were.
    """
    negative = _joined((negative or "", style.negative)) if style.negative else negative
    return _joined((style.prefix, prompt, style.suffix)), negative


def _joined(parts: Iterable[str]) -> str:
    """A single part is left as it is; a comma or a space at a seam is not doubled."""
    kept = [part for part in parts if part.strip(" ,")]
    if len(kept) < 2:
        return kept[0] if kept else ""
    return ", ".join([part.rstrip(" ,") for part in kept[:-1]] + [kept[-1]])
