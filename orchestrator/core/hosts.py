"""Where outputs may come from. Pure: names and addresses are judged here, resolved elsewhere."""

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

from orchestrator.core.errors import OutputForbidden

PROVIDER_HOST = "replicate.delivery"  # and its subdomains (Replicate docs: output files)
_DEFAULT_PORTS = {"http": 80, "https": 443}
_TRANSLATED = ip_network("64:ff9b::/96")  # IPv4 behind IPv6 (RFC 6052)
REMEDY = "add it to ORCHESTRATOR_OUTPUT_HOSTS if you trust it"


@dataclass(frozen=True, slots=True)
class Host:
    """A host that the user named: any port, or one."""

    name: str
    port: int | None

    @staticmethod
    def parse(text: str) -> "Host":
        """`host`, `host:port` or `[address]:port`; a scheme before it is ignored. Raises ValueError for the rest."""
        rest = text.strip().lower().rpartition("://")[2].rstrip("/")
        if rest.startswith("["):
            name, closed, port = rest[1:].partition("]")
            port = port.removeprefix(":") if closed else "unclosed"
        elif rest.count(":") > 1:
            name, port = rest, ""
        else:
            name, _, port = rest.partition(":")
        if not name or any(char in name for char in "/@?#*[] ") or (port and not port.isdecimal()):
            raise ValueError(f"{text!r} is not a host or host:port")
        return Host(name.rstrip("."), int(port) if port else None)


class AllowedHosts:
    """The provider's hosts and those that the user named. Raises ValueError for a name that is none."""

    def __init__(self, extra: frozenset[str]) -> None:
        self._extra = frozenset(Host.parse(text) for text in extra)

    def is_named(self, host: str, *, port: int) -> bool:
        """Whether the user named this host (and port): then its address may be private, and plain http will do."""
        name = host.lower().rstrip(".")
        return Host(name, port) in self._extra or Host(name, None) in self._extra

    def check(self, *, scheme: str, host: str, port: int | None) -> None:
        """Raises OutputForbidden unless outputs may be fetched from there. `port` None: the scheme's own."""
        wanted = port or _DEFAULT_PORTS.get(scheme, 0)
        if scheme not in _DEFAULT_PORTS:
            raise OutputForbidden(f"an output by {scheme or 'no scheme'}:// is not fetched; https:// is")
        if self.is_named(host, port=wanted):
            return
        name = host.lower().rstrip(".")
        if name != PROVIDER_HOST and not name.endswith("." + PROVIDER_HOST):
            raise OutputForbidden(f"an output on host {host} is not fetched; {REMEDY}")
        if scheme != "https" or wanted != 443:
            raise OutputForbidden(f"an output by {scheme}://{host}:{wanted} is not fetched; the provider's are https://")


def is_public(address: str) -> bool:
    """Whether an IP address lies in the public internet; also behind the forms in which IPv6 carries IPv4."""
    try:
        found = ip_address(address.partition("%")[0])
    except ValueError:
        return False
    return _is_global(_unwrapped(found))


def _unwrapped(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    if isinstance(address, IPv4Address):
        return address
    if address in _TRANSLATED:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or address


def _is_global(address: IPv4Address | IPv6Address) -> bool:
    return address.is_global and not address.is_multicast and not address.is_reserved
