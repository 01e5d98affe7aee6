"""`python -m gesso VERB` is `gesso VERB`."""

from __future__ import annotations

import sys

from gesso.cli import main

if __name__ == "__main__":
    sys.exit(main())
