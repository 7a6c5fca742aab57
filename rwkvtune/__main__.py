"""`python -m rwkvtune` is the `rwkvtune` command."""

import sys

from .cli import main

sys.exit(main())
