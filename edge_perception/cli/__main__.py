"""``python -m edge_perception.cli``."""

import sys

from edge_perception.cli import main

sys.exit(main())
