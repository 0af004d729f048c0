"""`python -m sorix_dist` is the command `sorix-dist`."""

from __future__ import annotations

import sys

from sorix_dist.cli import main

if __name__ == "__main__":  # documentation tools import every module
    sys.exit(main())
