"""``python -m adapters_hub.cli``."""

import sys

from adapters_hub.cli import main

sys.exit(main())
