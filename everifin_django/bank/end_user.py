"""The IP address and the browser of the person who is present, as they may be sent to a bank."""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from urllib.parse import quote_from_bytes

MAX_NODE_LENGTH = 100
MAX_USER_AGENT_LENGTH = 512

NODE = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([0-9.]+))(?::(?:[0-9]{1,5}|_[A-Za-z0-9._-]+))?")
"""A bracketed IPv6 or a plain IPv4 address, and a port. Source: RFC 7239, section 6."""

NOT_PUBLIC = tuple(
    ip_network(network)
    for network in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "224.0.0.0/4",
        "240.0.0.0/4",
        "::/96",
        "64:ff9b:1::/48",
        "100::/64",
        "fc00::/7",
        "fe80::/10",
        "fec0::/10",
        "ff00::/8",
    )
)
"""
What no visitor of a public site comes from: this network, private, shared, loopback, link-local,
protocol assignments, benchmarks, multicast, reserved. The documentation networks are not in it: no
visitor comes from there either, and tests need them.

Source: the IANA special-purpose address registries (RFC 6890).
"""


NAT64 = ip_network("64:ff9b::/96")
"""IPv4 addresses as an IPv6 server sees them. Source: RFC 6052, section 2.1."""


def read_ip(node: str) -> IPv4Address | IPv6Address | None:
    """
    Return the IP address in *node*, as a proxy writes it: with a port, brackets or quotes.

    None for all else. IPv4 within IPv6 is IPv4.
    """
    found = node[: MAX_NODE_LENGTH + 1].strip(' \t"')
    match = NODE.fullmatch(found)
    return parse_ip((match[1] or match[2]) if match else found)


def is_public(ip: IPv4Address | IPv6Address) -> bool:
    """Can a visitor of a public site have this IP address? Documentation networks count."""
    within = ip.sixtofour if isinstance(ip, IPv6Address) else None
    return not any(ip in network or (within and within in network) for network in NOT_PUBLIC)


def sendable_user_agent(agent: str) -> str | None:
    """
    Return *agent* as a header carries it, at most 512 characters; None if it is empty, or has
    control characters such as line breaks.

    What is not ASCII is percent-encoded, as its bytes came: "%" and hexadecimal digits are legal in
    a product's name and in a comment (RFC 9110, sections 5.6.2 and 10.1.5).
    """
    agent = agent.strip(" \t")
    if not agent or any(char < " " or char == "\x7f" for char in agent):
        return None
    encoded = "".join(char if char.isascii() else _escaped(char) for char in agent)
    return re.sub(r"%[0-9A-F]?$", "", encoded[:MAX_USER_AGENT_LENGTH]) or None


def _escaped(char: str) -> str:
    try:
        # Django hands the bytes of a header on as Latin-1.
        return quote_from_bytes(char.encode("latin-1"))
    except UnicodeEncodeError:
        return quote_from_bytes(char.encode(errors="replace"))


def parse_ip(text: str) -> IPv4Address | IPv6Address | None:
    """Return the IP address that *text* is; None for all else, and for one with a zone."""
    try:
        parsed = ip_address(text)
    except ValueError:
        return None
    if isinstance(parsed, IPv6Address):
        if parsed in NAT64:
            return IPv4Address(int(parsed) & 0xFFFF_FFFF)
        return None if parsed.scope_id else parsed.ipv4_mapped or parsed
    return parsed
