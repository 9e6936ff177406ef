r"""Where a server is: its URL, as the library that connects reads it, and how near its address lies.

A URL that a server names (a redirect, a token server's realm) decides where requests and credentials go. It is read
once, by urllib3, which also connects: two readers that disagree on the host (``https://one.example\@other.example/``)
would let a stranger have what was meant for another. What no honest server writes is refused before.
Sources: RFC 3986 sections 2 and 3.2 (a URL is printable ASCII without a backslash), RFC 9110 section 4.2.4 (no userinfo
in HTTP), IANA's special-purpose address registries through ``ipaddress``.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from contextlib import suppress
from enum import IntEnum
from urllib.parse import urljoin

from urllib3.exceptions import LocationParseError
from urllib3.util import Url, parse_url

from parbake.core.errors import RegistryError

PORTS = {"http": 80, "https": 443}
_HOST = re.compile(r"[a-z0-9._-]+|\[[0-9a-f:.]+\]")
_AUTHORITY_ENDS = re.compile(r"[/?#]")
_SHOWN = 100


class AddressZone(IntEnum):
    """How near an address lies, the nearest first."""

    LOOPBACK = 0
    LINK_LOCAL = 1
    PRIVATE = 2
    PUBLIC = 3

    def __str__(self) -> str:
        return self.name.lower().replace("_", "-")


def read_url(text: str) -> Url:
    """Return an http or https URL without its fragment; raises RegistryError for anything else.

    Refused besides: a backslash, whitespace, control characters and what is not ASCII; userinfo; a host with
    percent-encoding or a zone; port 0.
    """
    _check_signs(text)
    authority = _AUTHORITY_ENDS.split(text.partition("//")[2], maxsplit=1)[0]
    if "@" in authority:
        raise _no_url(text, "it contains a user name")
    try:
        url = parse_url(text)
    except LocationParseError as error:
        raise _no_url(text, "it cannot be read") from error
    if url.scheme not in PORTS:
        raise _no_url(text, "it is not HTTP")
    if not _HOST.fullmatch(url.host or "") or url.port == 0:
        raise _no_url(text, "its host or port is not valid")
    return url._replace(fragment=None)


def join(base: Url, text: str) -> Url:
    """Return what a server's ``text`` means at ``base``: a URL or a relative reference. Raises as ``read_url``."""
    _check_signs(text)
    try:
        return read_url(urljoin(base.url, text))
    except ValueError as error:  # a bracket too many
        raise _no_url(text, "it cannot be read") from error


def origin(url: Url) -> tuple[str, str, int]:
    """Return scheme, host and port: what a credential is bound to."""
    scheme = url.scheme or ""
    return scheme, url.host or "", url.port or PORTS.get(scheme, 0)


def shown(url: Url) -> str:
    """Name a URL without its path and query, which may hold a signature that is as good as a password."""
    return f"{url.scheme}://{url.netloc}"


def bare_host(host: str) -> str:
    """Return the host of ``host[:port]``, in lower case and without brackets; empty when it is none."""
    with suppress(LocationParseError):
        return (parse_url(f"//{host}").host or "").strip("[]")
    return ""


def is_loopback(host: str) -> bool:
    """Whether ``host[:port]`` names this machine by a literal, as Docker and containerd judge it."""
    name = bare_host(host)
    if name == "localhost":
        return True
    with suppress(ValueError):
        return ipaddress.ip_address(name).is_loopback
    return False


def zone_of(address: str) -> AddressZone:
    """Return how near an IP address lies, as the system writes it (an IPv6 address may have a zone)."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        found = found.ipv4_mapped or found
    if found.is_loopback or found.is_unspecified:
        return AddressZone.LOOPBACK
    if found.is_link_local:
        return AddressZone.LINK_LOCAL
    return AddressZone.PUBLIC if found.is_global else AddressZone.PRIVATE


def zone_of_literal(host: str) -> AddressZone | None:
    """Return how near a host lies that is named by its address, in any spelling that systems take; None for a name."""
    name = host.strip("[]")
    if name == "localhost" or name.endswith(".localhost"):
        return AddressZone.LOOPBACK
    with suppress(OSError):
        return zone_of(socket.inet_ntoa(socket.inet_aton(name)))  # also 127.1, 0x7f.1, 2130706433
    with suppress(ValueError):
        return zone_of(name)
    return None


def _check_signs(text: str) -> None:
    if not (text.isascii() and text.isprintable()) or " " in text or "\\" in text:
        raise _no_url(text, "a URL is ASCII without whitespace, control characters and backslashes")


def _no_url(text: str, reason: str) -> RegistryError:
    place = ascii(text.partition("?")[0])  # what follows may be a signature
    if "@" in place:
        place = "(not shown: it may hold a password)"
    return RegistryError(
        f"a server sent a URL that parbake does not follow: {reason}: {place[:_SHOWN]}",
        hint="contact the registry's operators; a compromised or hostile registry may do this",
    )
