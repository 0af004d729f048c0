"""`python -m sorix_dist` is the command `sorix-dist`."""

from __future__ import annotations

import sys

from sorix_dist.cli import main

sys.exit(main())
