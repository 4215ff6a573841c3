"""Addresses as strangers write them, and which of them are the public internet's."""

from __future__ import annotations

import ipaddress
import re
import socket
from dataclasses import dataclass

from server.errors import RefusedAddress

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

#: Written out beside ``is_global``, which depends on Python's patch level, lets multicast through and looks into no
#: tunnel: 6to4, NAT64, Teredo and ISATAP addresses carry an IPv4 address that may be a private one.
_REFUSED: tuple[Network, ...] = tuple(
    ipaddress.ip_network(network)
    for network in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",
        # Azure's virtual public address of the host.
        "168.63.129.16/32",
        # Unspecified, loopback and the old IPv4-compatible addresses.
        "::/96",
        "::ffff:0:0/96",
        "64:ff9b::/96",
        "64:ff9b:1::/48",
        "100::/64",
        "2001::/32",
        "2001:db8::/32",
        "2002::/16",
        "fc00::/7",
        "fe80::/10",
        "fec0::/10",
        "ff00::/8",
    )
)

#: Upper half of an ISATAP interface id, with and without the universal bit.
_ISATAP = (0x0000_5EFE, 0x0200_5EFE)

_HOST_NAME = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,62})(\.[a-z0-9_]([a-z0-9_-]{0,62}))*")
#: A last label such as 1, 017 or 0x7f makes the whole host an IPv4 address for most resolvers.
_ENDS_IN_NUMBER = re.compile(r"(.*\.)?([0-9]+|0x[0-9a-f]*)")


def is_public(address: str | Address) -> bool:
    """Global unicast, no tunnel to anything else. Raises ``ValueError`` for what is no address."""
    parsed = ipaddress.ip_address(address)
    if any(parsed.version == network.version and parsed in network for network in _REFUSED):
        return False
    if parsed.version == 6 and (int(parsed) >> 32) & 0xFFFF_FFFF in _ISATAP:
        return False
    return parsed.is_global and not parsed.is_multicast


@dataclass(frozen=True, kw_only=True)
class Allowed:
    """One entry of the allow-list: a host name or a network, on one port or on all."""

    name: str | None = None
    network: Network | None = None
    port: int | None = None

    @classmethod
    def parse(cls, entry: str) -> Allowed:
        """``host``, ``host:port``, an address, ``address:port``, ``[IPv6]:port``, a network; or ``ValueError``."""
        try:
            # 192.168.1.20/24 is meant as the network around it.
            return cls(network=ipaddress.ip_network(entry.strip("[]"), strict=False))
        except ValueError:
            host, colon, port = entry.rpartition(":")
        if not colon:
            host, port = entry, ""
        try:
            name = canonical(host)
        except RefusedAddress:
            raise ValueError(f"{entry!r} is no host, address or network") from None
        number = int(port) if port else None
        if isinstance(name, str):
            return cls(name=name, port=number)
        return cls(network=ipaddress.ip_network(name), port=number)

    def covers(self, host: str | Address, address: Address | None, port: int) -> bool:
        """Whether ``host``, which resolved to ``address``, may be reached on ``port``."""
        if self.port is not None and self.port != port:
            return False
        if self.network is None:
            return self.name == host
        return address is not None and address.version == self.network.version and address in self.network


def canonical(host: str) -> str | Address:
    """A lower-case name without its final dot, or the address that the host spells in one way or another.

    Raises ``RefusedAddress`` for what can be neither.
    """
    plain = host.lower().removesuffix(".")
    try:
        return ipaddress.ip_address(plain.strip("[]"))
    except ValueError:
        pass
    if _ENDS_IN_NUMBER.fullmatch(plain):
        # Decimal, octal, hexadecimal and short forms (2130706433, 0177.1, 0x7f.1), as the C library reads them.
        try:
            return ipaddress.IPv4Address(socket.inet_aton(plain))
        except (OSError, ValueError) as error:
            raise unreachable(host) from error
    try:
        name = plain.encode("idna").decode("ascii") if not plain.isascii() else plain
    except UnicodeError as error:
        raise unreachable(host) from error
    if len(name) > 253 or not _HOST_NAME.fullmatch(name):
        raise unreachable(host)
    return name


def unreachable(host: str) -> RefusedAddress:
    """One text, whatever is wrong with an address."""
    return RefusedAddress(f"The address in the URL cannot be reached: {host[:100]}")
