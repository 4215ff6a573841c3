"""Which IP-Adapters there are: they let a picture be part of the prompt (Ye et al. 2023, arXiv 2308.06721)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, kw_only=True)
class IpAdapterFacts:
    """What is known of an adapter without its file."""

    #: A key of ``pipelines.registry.FAMILIES``.
    family: str
    #: The image encoder it was trained with: a folder's name.
    encoder: str


#: Public id, the name of its file too -> facts; as published in h94/IP-Adapter.
IP_ADAPTERS: Mapping[str, IpAdapterFacts] = MappingProxyType(
    {
        "ip-adapter_sd15": IpAdapterFacts(family="sd15", encoder="vit-h"),
        "ip-adapter-plus-face_sd15": IpAdapterFacts(family="sd15", encoder="vit-h"),
        "ip-adapter_sdxl": IpAdapterFacts(family="sdxl", encoder="vit-g"),
        "ip-adapter-plus_sdxl_vit-h": IpAdapterFacts(family="sdxl", encoder="vit-h"),
        "ip-adapter-plus-face_sdxl_vit-h": IpAdapterFacts(family="sdxl", encoder="vit-h"),
    }
)
#: Families that have adapters.
ADAPTED = frozenset(facts.family for facts in IP_ADAPTERS.values())
