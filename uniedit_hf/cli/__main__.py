"""The command line as a module, as `accelerate launch -m uniedit_hf.cli` wants it."""

from __future__ import annotations

import sys

from uniedit_hf.cli import main


if __name__ == "__main__":
    sys.exit(main())
