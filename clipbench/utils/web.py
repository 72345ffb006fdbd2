"""Files behind http(s) addresses: the only way in which this package opens one itself.

A server somewhere on the internet must not make this machine ask one on its own network: whoever names a public
address is not led to a private one, by a redirect or by a name that resolves to one. An address on one's own network
that the user names himself is as good as any.
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import socket
from collections.abc import Callable, Iterator, Mapping
from email.message import Message
from typing import IO, TYPE_CHECKING, Any
from urllib import request
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from urllib.response import addinfourl

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


class Refused(OSError):
    """An address that is not asked, whoever leads there."""


def open_address(address: str, *, headers: Mapping[str, str] | None = None, timeout: float) -> addinfourl:
    """The answer of an http(s) address, after its redirects.

    Args:
        timeout: seconds without a byte.

    Raises:
        Refused: it leads to another scheme, or from a public host to one that is not.
        OSError, ValueError, http.client.HTTPException: as `urllib.request.urlopen`.
    """
    guard = _Guard(address)
    opener = request.OpenerDirector()
    for handler in (
        request.ProxyHandler(),
        request.UnknownHandler(),
        _Guarded(guard),
        request.HTTPDefaultErrorHandler(),
        request.HTTPErrorProcessor(),
        _Redirects(guard),
    ):
        opener.add_handler(handler)
    guard.check_scheme(address)
    answer: addinfourl = opener.open(request.Request(address, headers=dict(headers or {})), timeout=timeout)  # noqa: S310
    return answer


def public(address: str) -> bool:
    """Whether an IP address is one of the internet's, not of this machine, its networks, or of many at once.

    >>> [public(a) for a in ("93.184.216.34", "127.0.0.1", "::ffff:10.0.0.1", "169.254.169.254", "::", "ff02::1")]
    [True, False, False, False, False, False]
    """
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = [ip.ipv4_mapped, ip.sixtofour, ip.teredo[1] if ip.teredo else None]
        if ip in _NAT64 or int(ip) >> 32 == 0:  # the latter: "IPv4-compatible", long out of use
            inner.append(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF))
        if any(one is not None and not public(str(one)) for one in inner):
            return False
        if ip.ipv4_mapped is not None:
            return True
    return ip.is_global and not ip.is_multicast


class _Guard:
    """Knows whether the address that the user named is on his own network, and lets nothing else lead there."""

    def __init__(self, address: str) -> None:
        self._named = urlsplit(address).hostname or ""
        self._inward: bool | None = True if _literally_inward(self._named) else None

    def check_scheme(self, address: str) -> None:
        scheme = urlsplit(address).scheme
        if scheme not in ("http", "https"):
            raise Refused(
                f"it leads to an address of {scheme or 'no'} kind, and only http and https are read"
            )

    def check(self, address: str) -> None:
        """Raise Refused where a redirect may not lead to `address`, as far as its text tells."""
        self.check_scheme(address)
        host = urlsplit(address).hostname or ""
        if not self._inward and _literally_inward(host):
            raise self._refusal(host)
        if self._inward is None:  # a proxy asked the first one, which has a public name as far as we know
            self._inward = False

    def connect(
        self,
        address: tuple[str, int],
        timeout: Any = socket._GLOBAL_DEFAULT_TIMEOUT,  # type: ignore[attr-defined]
        source_address: tuple[str, int] | None = None,
    ) -> socket.socket:
        """As `socket.create_connection`, to the addresses that were looked at."""
        host, port = address
        found = list(
            dict.fromkeys(str(f[4][0]) for f in socket.getaddrinfo(host, port, 0, socket.SOCK_STREAM))
        )
        inward = not all(map(public, found))
        if self._inward is None:
            self._inward = inward
        if inward and not self._inward:
            raise self._refusal(host)
        error = OSError(f"{host} has no address")
        for one in found:
            try:
                return socket.create_connection((one, port), timeout, source_address)
            except OSError as failed:
                error = failed
        raise error

    def _refusal(self, host: str) -> Refused:
        return Refused(f"{self._named} leads to {host}, which is on this machine or its own network")


def _literally_inward(host: str) -> bool:
    """Whether `host` is written as an address, in whatever form, or a name, of one's own machine or network."""
    host = host.rstrip(".").lower()
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:  # without asking anybody; takes 127.1, 0x7f000001 and 2130706433 as connecting would
        found = socket.getaddrinfo(host, None, 0, socket.SOCK_STREAM, 0, socket.AI_NUMERICHOST)
    except (OSError, UnicodeError):
        return False
    return not all(public(str(one[4][0])) for one in found)


@contextlib.contextmanager
def _closed_if_refused(answer: IO[bytes]) -> Iterator[None]:
    try:
        yield
    except Refused:
        answer.close()
        raise


class _Redirects(request.HTTPRedirectHandler):
    def __init__(self, guard: _Guard) -> None:
        self._guard = guard

    def redirect_request(self, *asked: Any) -> Any:
        _, answer, *_, address = asked
        with _closed_if_refused(answer):
            self._guard.check(address)
        return super().redirect_request(*asked)

    def http_error_302(
        self, req: request.Request, fp: IO[bytes], code: int, msg: str, headers: http.client.HTTPMessage
    ) -> Any:
        target: Message = headers
        named = target.get("Location") or target.get("URI") or ""
        if urlsplit(named).scheme:
            with _closed_if_refused(fp):
                self._guard.check_scheme(named)  # before urllib says so in its own words
        return super().http_error_302(req, fp, code, msg, headers)

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


class _Guarded(request.HTTPSHandler, request.HTTPHandler):
    """Connects as the guard does; a proxy is the user's own, and looks names up itself."""

    def __init__(self, guard: _Guard) -> None:
        super().__init__()
        self._guard = guard

    def http_open(self, req: request.Request) -> Any:
        return self._ask(http.client.HTTPConnection, req)

    def https_open(self, req: request.Request) -> Any:
        return self._ask(http.client.HTTPSConnection, req)

    def _ask(self, kind: Callable[..., Any], req: request.Request) -> Any:
        if req.has_proxy() or getattr(req, "_tunnel_host", None):
            return self.do_open(kind, req)

        def connection(host: str, **more: Any) -> Any:
            made = kind(host, **more)
            made._create_connection = self._guard.connect
            return made

        return self.do_open(connection, req)
