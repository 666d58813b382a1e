"""Write the page of methods to the file named on the command line, or to the standard output."""

from __future__ import annotations

import sys
from pathlib import Path

from itrd.catalogue.page import make_page


def main(argv: list[str]) -> int:
    """Write or print the page and return the exit status."""
    if len(argv) > 1 or any(word.startswith("-") for word in argv):
        print("usage: python -m itrd.catalogue [FILE]", file=sys.stderr)
        return 2
    if argv:
        Path(argv[0]).write_text(make_page(), encoding="utf-8")
    else:
        sys.stdout.write(make_page())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
