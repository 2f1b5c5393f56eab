"""Which IP addresses are public, so that nothing is sent into a private network by mistake."""

from __future__ import annotations

import ipaddress

# Addresses that no public service has, from IANA's registries of special addresses. The list is our
# own, because the set that `ipaddress` calls private differs between versions of Python.
_PRIVATE_4 = [
    ipaddress.ip_network(network)
    for network in (
        *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16"),
        *("172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16"),
        *("198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/3"),
        "168.63.129.16/32",  # the address where a machine of Azure asks about itself
    )
]
_PUBLIC_6 = ipaddress.ip_network("2000::/3")
_PRIVATE_6 = [
    ipaddress.ip_network(network)
    # Protocols of the IETF (Teredo, ORCHID, benchmarks), documentation, 6to4, documentation.
    for network in ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")
]
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
# The lower half of an ISATAP address begins so; it ends in an IPv4 address.
_ISATAP = (0x5EFE, 0x200_5EFE)


def is_public(address: str) -> bool:
    """Whether *address* is an ordinary address of the Internet."""
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv4Address):
        return ip.is_global and not any(ip in network for network in _PRIVATE_4)
    embedded = str(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF))
    if ip in _NAT64:  # an IPv4 address, as a network without IPv4 writes it
        return is_public(embedded)
    if (int(ip) >> 32) & 0xFFFFFFFF in _ISATAP and not is_public(embedded):
        return False
    return ip in _PUBLIC_6 and ip.is_global and not any(ip in network for network in _PRIVATE_6)
