"""Documented options that are accepted and not applied: an answer names each one that was asked for."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from server.api.modelslab.coerce import Fields, as_flag, as_number


@dataclass(frozen=True, kw_only=True)
class Unbuilt:
    """One option, by its wire name."""

    name: str
    aliases: tuple[str, ...] = ()
    #: Beside "not given" and what ``as_flag`` calls no: values that ask for nothing.
    neutral: tuple[str | float, ...] = ()
    #: Whether "no" and 0 ask for nothing.
    no_is_neutral: bool = True
    #: Key in ``meta``; "" = not echoed.
    meta: str = ""
    #: What ``meta`` says, asked or not: the value that was used.
    used: str | float | None = None

    def asked(self, fields: Fields) -> bool:
        """The call wants something that is not done."""
        value = fields.raw(self.name, *self.aliases)
        if value is None or (self.no_is_neutral and as_flag(value) is False):
            return False
        number = as_number(value)
        return (str(value).strip().lower() if number is None else number) not in self.neutral


def _flag(name: str, *aliases: str, neutral: tuple[str | float, ...] = ()) -> Unbuilt:
    return Unbuilt(name=name, aliases=aliases, neutral=neutral, meta=name, used="no")


def _value(name: str) -> Unbuilt:
    return Unbuilt(name=name, meta=name)


UNBUILT: tuple[Unbuilt, ...] = (
    _flag("tomesd"),
    _flag("multi_lingual"),
    _flag("panorama"),
    _flag("self_attention"),
    _flag("free_u"),
    _flag("watermark"),
    # Without ip_adapter_id.
    Unbuilt(name="ip_adapter_scale", neutral=(0, 0.6)),
    _value("ip_adapter_image"),
    # Flux only; the neutral values are the documented defaults.
    Unbuilt(name="injected_noise_alpha", neutral=(0.75,)),
    Unbuilt(name="sigma_threshold", neutral=(0.45,)),
    Unbuilt(name="use_cfg_zero_star", neutral=("true", "yes", 1)),
    Unbuilt(name="use_zero_init"),
    Unbuilt(name="zero_steps"),
    # Of some endpoints, and sent to another one by mistake.
    Unbuilt(name="init_image", aliases=("image",)),
    Unbuilt(name="init_image_2"),
    Unbuilt(name="mask_image"),
    Unbuilt(name="control_image", aliases=("controlnet_image",)),
    Unbuilt(name="controlnet_model"),
)


def used_options() -> dict[str, str | float | None]:
    """What ``meta`` says about all of them."""
    return {option.meta: option.used for option in UNBUILT if option.meta}


def find_unapplied(fields: Fields, *, applied: Collection[str] = ()) -> list[str]:
    """The names of the options that the call asks for, without those that this endpoint knows."""
    return [option.name for option in UNBUILT if option.name not in applied and option.asked(fields)]
