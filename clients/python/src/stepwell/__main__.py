"""`python -m stepwell spool list`: the command where no script is on the PATH."""

from __future__ import annotations

import sys

from ._cli import main

sys.exit(main())
