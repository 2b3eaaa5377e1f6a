"""``python -m adapters_hub.cli``."""

import sys

from adapters_hub.cli import main

if __name__ == "__main__":
    sys.exit(main())
