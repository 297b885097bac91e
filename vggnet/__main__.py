"""``python -m vggnet`` is the command ``vggnet``."""

import sys

from .cli import main

sys.exit(main())
