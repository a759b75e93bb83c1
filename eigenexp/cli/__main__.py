"""``python -m eigenexp.cli``."""

import sys

from eigenexp.cli.commands import main

if __name__ == "__main__":
    sys.exit(main())
