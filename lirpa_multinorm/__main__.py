"""``python -m lirpa_multinorm``: the command line."""

import sys

from .cli import main

sys.exit(main())
