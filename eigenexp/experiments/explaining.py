"""A library's message about a setting as one line: key, what was got, what exists."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from typing import Any

from hydra.errors import OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

__all__ = ["explain", "near", "no_such_key", "unquoted"]


def explain(
    error: Exception,
    options: Callable[[str], Sequence[str]],
    keys: Callable[[str], Sequence[str]],
) -> str:
    """Turn Hydra's message into one line.

    Parameters
    ----------
    error
        Of Hydra or OmegaConf.
    options, keys
        The choices of a group; the keys under a dotted name.
    """
    if isinstance(error, OverrideParseException):
        return _unparsed(str(error.override))
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    text = " ".join(str(error).split())
    absent = re.search(r"Could not find '(\w+)/([^']*)'", text)
    if absent:
        group, name = absent[1], absent[2]
        known = options(group)
        return f"{group}: expected one of {', '.join(known)}, got {name!r}{near(name, known)}"
    key = getattr(cause, "full_key", None) or (re.findall(r"Key '([^']+)'", text) or [None])[0]
    message = " ".join(str(cause).split()).split(" full_key:")[0]
    if key and re.search(r"Key '[^']+' (is not in struct|not in )", message):
        known = keys(str(key).rpartition(".")[0])
        return (
            no_such_key(str(key), known)
            if known
            else (f"{key}: no such key yet; write +{key}=… to add it")
        )
    return f"{key}: {message}" if key else f"configuration: {message}"


def no_such_key(key: str, known: Sequence[str]) -> str:
    """Say that a key does not exist, which do, and which of them is like it."""
    return (
        f"{key}: no such key; expected one of {', '.join(known)}"
        f"{near(key.rpartition('.')[2], known)}"
    )


def near(name: str, known: Sequence[str]) -> str:
    """Return a suggestion in brackets, or nothing."""
    close = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def _unparsed(override: str) -> str:
    """Say how to write a value that Hydra's grammar does not take as it stands."""
    key, equals, value = override.partition("=")
    if not equals or not re.fullmatch(r"[+~]*[\w./@:-]+", key):
        return f"expected key=value, got {override!r}"
    inner = value.strip("'\"").replace("\\", "\\\\").replace("'", "\\'")
    for special in ("\\", '"', "$", "`"):  # as a shell reads them between double quotes
        inner = inner.replace(special, f"\\{special}")
    return f"{key}: expected a plain value, got {value!r}; quote it: \"{key}='{inner}'\""


def unquoted(error: OmegaConfBaseException, config: Any) -> str:
    """Say how to write a value in which ``${…}`` is text and refers to nothing."""
    key = str(error.full_key or "")
    message = " ".join(str(error).split()).split(" full_key:")[0]
    node = OmegaConf.to_container(config, resolve=False)
    for part in key.split("."):
        node = node.get(part) if isinstance(node, dict) else None
    if not isinstance(node, str) or "${" not in node:
        return f"{key or 'configuration'}: {message}"
    literal = node.replace("\\${", "${").replace("${", "\\${").replace("\\", "\\")
    return (
        f"{key}: {message} ({node!r} refers to another setting); if it is meant as it stands, "
        f"write '{key}=\"{literal}\"'"
    )
