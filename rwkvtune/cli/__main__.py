"""`python -m rwkvtune.cli` is the `rwkvtune` command."""

import sys

from . import main

sys.exit(main())
