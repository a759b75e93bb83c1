"""The command line, ``eigenexp COMMAND``."""

from eigenexp.cli.commands import main

__all__ = ["main"]
