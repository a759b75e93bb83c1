"""Addresses without the secrets that may stand in them (``https://name:password@host``)."""

from __future__ import annotations

import re
from urllib.parse import unquote

__all__ = ["userinfo", "without_userinfo"]

_USERINFO = re.compile(
    r"(?P<scheme>\b[a-zA-Z][a-zA-Z0-9+.-]*://)(?P<user>[^/?#\s@]*(?:@[^/?#\s@]*)*)@"
)


def without_userinfo(text: str) -> str:
    """Return ``text`` with name and password taken out of every address in it."""
    return _USERINFO.sub(lambda match: match["scheme"], text)


def userinfo(address: str) -> tuple[str, str] | None:
    """Return name and password that stand in an address, decoded; ``None`` where there is none."""
    match = _USERINFO.match(address)
    if match is None:
        return None
    name, _, password = match["user"].partition(":")
    return unquote(name), unquote(password)
