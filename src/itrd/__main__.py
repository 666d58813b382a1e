"""``python -m itrd``."""

import sys

from itrd.cli import main

sys.exit(main())
