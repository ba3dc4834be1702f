"""Who may manage the server: load, unload, log settings, trace settings and shared memory. One rule for every front end."""

import ipaddress
import re
from collections.abc import Mapping
from urllib.parse import urlsplit

from mpserve.config.settings import Settings
from mpserve.errors import AccessDenied
from mpserve.protocol.json.documents import MAX_SHOWN, show

LOOPBACK = ("127.0.0.1", "::1")
"""Linux gives a client on loopback one of these. Istio's sidecar takes 127.0.0.6, for clients of other hosts."""

FORWARDED = ("forwarded", "via", "x-real-ip", "x-forwarded-", "x-envoy-")
"""How the headers begin by which a proxy is known. Their values are not read, since any client may send any value."""


def check_access(
    settings: Settings,
    address: str | None,
    headers: Mapping[str, str],
    caller: str | None = None,
    is_admin: bool = False,
) -> None:
    """Refuse a request to manage the server, unless ``settings.management`` allows it, and ``settings.managers`` the caller.

    Args:
        settings: the options of the server.
        address: the address of the other end of the connection. None: unknown, as on a Unix socket, where a proxy may be.
        headers: the headers of the request, with names in lower case.
        caller: the name of whoever sends the request, or None if callers have no names.
        is_admin: whether the request came to the address of ``--admin_bind``.

    Raises:
        AccessDenied: the request may not manage the server.
    """
    if settings.management == "off":
        raise AccessDenied("the server was started with --management=off: its models and settings cannot be changed")
    if settings.admin_bind and not is_admin:
        raise AccessDenied("the server is managed over HTTP at the address of --admin_bind, and nowhere else")
    if settings.knows_callers and caller not in re.split(r"\s*,\s*", settings.managers or ""):
        raise AccessDenied(f"{show(caller or '')} may not manage the server: --managers does not name this caller")
    if settings.management == "anywhere":
        return
    if is_admin and address is None:  # whoever may open the Unix socket of --admin_bind is on this host
        address = settings.host
    reason = _stranger(settings.host, address, headers) or _cross_site(settings.host, headers)
    if reason:
        raise AccessDenied(
            f"{reason}; the server answers this only to its own host, at 127.0.0.1, unless it is started with"
            " --management=anywhere"
        )


def _stranger(own: str, address: str | None, headers: Mapping[str, str]) -> str | None:
    """Why the request is not from this host, or None."""
    if address is None or _plain(address) not in (*LOOPBACK, own):
        return f"the request came from {address or 'an unknown address'}"
    proxied = next((name for name in headers if name.startswith(FORWARDED)), None)
    return None if proxied is None else f"the request came through a proxy, by its header {proxied[:MAX_SHOWN]}"


def _cross_site(own: str, headers: Mapping[str, str]) -> str | None:
    """Why the request is one that a web page of another site made a browser on this host send, or None.

    Such a page may reach the server by a name of its own, for which its DNS server gives 127.0.0.1. So ``Host`` must not be a
    name that another site can have.
    """
    host = headers.get("host", "localhost")
    if not _is_safe(host, own):
        return f"the request is for the host {show(host)}"
    origin = headers.get("origin")
    if origin is not None and origin.partition("://")[2] != host:
        return f"the request is of a page from {show(origin)}"
    site = headers.get("sec-fetch-site", "none")
    return None if site in ("none", "same-origin") else f"the request is of a page from another site ({show(site)})"


def _is_safe(host: str, own: str) -> bool:
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name in ("localhost", own) or bool(ipaddress.ip_address(name))
    except ValueError:
        return False


def _plain(address: str) -> str:
    """An IPv4 address also if it is written as an IPv6 address."""
    return address.removeprefix("::ffff:")
