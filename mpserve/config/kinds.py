"""Kinds of values that single options have."""

import ipaddress
import re

from mpserve.config.options import Kind


def _device_list(text: str) -> str:
    devices = re.sub(r"\s", "", text).lower()
    if not re.fullmatch(r"auto|cpu|cuda:[0-9]+(,cuda:[0-9]+)*", devices):
        raise ValueError(text)
    return devices


def _host(text: str) -> str:
    host = text[1:-1] if re.fullmatch(r"\[.*:.*\]", text) else text
    if ":" in host:
        ipaddress.IPv6Address(host)
    if not host or re.search(r"[\s/\[\]]", host):
        raise ValueError(text)
    return host


def _address(text: str) -> str:
    if not text or re.search(r"\s|://", text):
        raise ValueError(text)
    return text


def _function(text: str) -> str:
    if not re.fullmatch(r"[^:]+:[^:]+", text):
        raise ValueError(text)
    return text


def _admin_address(text: str) -> str:
    if text.startswith("unix:"):
        path = text.removeprefix("unix:").removeprefix("//")
        if not path:
            raise ValueError(text)
        return f"unix:{path}"
    host, _, port = text.rpartition(":")
    if not 0 < int(port) < 65536:
        raise ValueError(text)
    return f"{_host(host)}:{int(port)}" if host else str(int(port))


def _origins(text: str) -> str:
    origins = re.split(r"\s*,\s*", text.strip())
    if origins != ["*"] and not all(re.fullmatch(r"[a-z][a-z0-9+.-]*://[^\s/,*]+", origin) for origin in origins):
        raise ValueError(text)
    return ",".join(origins)


def _sink(text: str) -> str:
    if not re.fullmatch(r"https?://[^\s/@]+(/\S*)?|file:///\S+", text):
        raise ValueError(text)
    return text


def _attributes(text: str) -> str:
    parts = [part.strip() for part in text.split(",")]
    if not all(re.fullmatch("[a-z0-9]{1,20}=.*", part) for part in parts):
        raise ValueError(text)
    return ",".join(parts)


def _public(text: str) -> str:
    parts = [part.strip() for part in text.lower().split(",")]
    if parts != ["none"] and not set(parts) <= set(PUBLIC):
        raise ValueError(text)
    return ",".join(parts)


PUBLIC = ("health", "metrics", "docs")
"""What may answer to everybody on a server that answers known callers only."""

FUNCTION = Kind(str, "model.py:function or package.module:function", _function)
DEVICES = Kind(str, "auto, cpu or a list such as cuda:0,cuda:1", _device_list)
HOST = Kind(str, "an address or a name without a port, such as 127.0.0.1, :: or localhost", _host)

ADMIN_ADDRESS = Kind(str, "PORT, HOST:PORT or unix:PATH", _admin_address)
ORIGINS = Kind(str, "*, or a list of origins such as https://app.example.com, without a path", _origins)
PUBLIC_PARTS = Kind(str, "none, or a list of health, metrics and docs", _public)
ADDRESS = Kind(str, "a host or host:port, without http:// (--predictor_use_ssl turns TLS on)", _address)
SINK = Kind(str, "http://…, https://… or file:///folder", _sink)
ATTRIBUTES = Kind(str, "a list NAME=VALUE,… with names of lower-case letters and digits", _attributes)
