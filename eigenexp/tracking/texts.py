"""Addresses without the secrets in them, and foreign texts that may go to a terminal or a file."""

from __future__ import annotations

import logging
import os
import re

from eigenexp.console import PlainFormatter
from eigenexp.storage.addresses import without_userinfo

__all__ = ["ScrubbedFormatter", "one_line", "printable", "with_userinfo", "without_userinfo"]

_LONGEST = 300
_PAGE = re.compile(r"['\"]?\s*<(?:!doctype|html|head|body)\b.*", re.IGNORECASE | re.DOTALL)


def with_userinfo(address: str) -> str:
    """Return a saved address with what ``MLFLOW_TRACKING_URI`` knows of the same one."""
    given = os.environ.get("MLFLOW_TRACKING_URI", "")
    return given if given and without_userinfo(given) == address else address


def printable(text: str) -> str:
    """Return ``text`` on one line without control characters (a terminal would obey them)."""
    plain = "".join(c if c.isprintable() else " " for c in text)
    return " ".join(plain.split())[:_LONGEST]


def one_line(error: BaseException) -> str:
    """Return an error's kind and text: one line, shortened, without secrets, escapes and pages.

    A page is what a gateway or a login answers in the place of a tracking server.
    """
    text = _PAGE.sub("a web page, which is no answer of MLflow's", without_userinfo(str(error)))
    return printable(f"{type(error).__name__}: {text}")


class ScrubbedFormatter(PlainFormatter):
    """Lines of a log without secrets and escapes, whatever library wrote them."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record's lines."""
        return without_userinfo(super().format(record))
