"""Where a request may go: no private address unless the caller named it, no step down from https, five redirects.

A URL from a user or from a server's redirect could lead a worker to its own network: a router's page, a cloud's
metadata service. Names are therefore checked as they are resolved for the connection itself, so that no second,
different answer of the DNS can come between check and use.
"""

from __future__ import annotations

import ipaddress
import socket
from functools import lru_cache

from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import DefaultResolver
from yarl import URL

from runner.errors import SourceRefused

# What requests and curl users see in practice is one or two; browsers allow 20 for logins, which we do not make.
MAX_REDIRECTS = 5
REDIRECTS = frozenset({301, 302, 303, 307, 308})


def is_public(address: str) -> bool:
    """Whether a literal IP address is one of the internet's: not private, loopback, link-local, multicast or reserved.

    An IPv4 address inside an IPv6 one (mapped, 6to4, Teredo, NAT64) is what counts.
    """
    ip = ipaddress.ip_address(address.partition("%")[0])
    inner = _inside(ip)
    if inner is not None:
        return is_public(str(inner))
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or ip.is_loopback or ip.is_link_local)


_NAT64 = ipaddress.ip_network("64:ff9b::/96")


def _inside(ip: ipaddress.IPv4Address | ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    if isinstance(ip, ipaddress.IPv4Address):
        return None
    if ip in _NAT64:
        return ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    return ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)


def check_literal(url: URL) -> None:
    """SourceRefused when the host is itself a private IP address: the connector asks no resolver about those."""
    if _is_private_literal(url.raw_host or ""):
        raise refusal(url.raw_host or "")


@lru_cache(1024)  # reading what is no address costs a tenth of a request on loopback, and hosts are few
def _is_private_literal(host: str) -> bool:
    try:
        return not is_public(host)
    except ValueError:
        return False  # a name: PublicResolver sees to it


def refusal(host: str) -> SourceRefused:
    """The error for a host that is or resolves to a private address."""
    return SourceRefused(
        f"{host}: a private, loopback or reserved address, and the request is for a public one. "
        "If it is your own server, name it, with this port, as the base_url."
    )


class Resolver(AbstractResolver):
    """Resolves names for the connector; one that no host can have is unknown like any other."""

    def __init__(self, inner: AbstractResolver | None = None) -> None:
        self._inner = inner or DefaultResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """The name's addresses."""
        try:
            return await self._inner.resolve(host, port, family)
        except UnicodeError:  # from Python, before it asks: a label that is empty or longer than 63 characters
            raise socket.gaierror(socket.EAI_NONAME, "a name that no host can have") from None

    async def close(self) -> None:
        """Close the resolver that does the work."""
        await self._inner.close()


class PublicResolver(Resolver):
    """Raises SourceRefused for a name that has any private address."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """The name's addresses; one private among them means that somebody is playing tricks."""
        found = await super().resolve(host, port, family)
        if not all(is_public(entry["host"]) for entry in found):
            raise refusal(host)
        return found


def next_hop(url: URL, location: str) -> URL:
    """Where a redirect leads, without the user and password it may carry.

    Raises:
        SourceRefused: from https to http, or to something that is not HTTP.
    """
    try:
        target = url.join(URL(location)).with_user(None).with_fragment(None)
    except ValueError:
        raise SourceRefused(f"{shown(url)} redirects to something that is no URL.") from None
    if target.scheme not in ("http", "https") or not target.raw_host:
        raise SourceRefused(f"{shown(url)} redirects to {target.scheme or 'no'}: where http or https was expected.")
    if url.scheme == "https" and target.scheme == "http":
        raise SourceRefused(f"{shown(url)} redirects from https to plain http at {target.raw_host}: not followed.")
    return target


def same_place(one: URL, other: URL) -> bool:
    """Whether both are the very same host and port: another port of a private host is another server."""
    return one.raw_host == other.raw_host and one.port == other.port


def same_origin(one: URL, other: URL) -> bool:
    """Whether both are the same host and port (or its http and https), so that the caller's headers may go along."""
    default = one.is_default_port() and other.is_default_port()
    return one.raw_host == other.raw_host and (one.port == other.port or default)


def shown(url: URL) -> str:
    """Scheme, host and path: what may be said aloud. Query strings hold keys."""
    return f"{url.scheme}://{url.host_port_subcomponent}{url.raw_path}"
