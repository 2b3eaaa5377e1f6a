"""``python -m adapters_hub``: the same as the command ``adapters-hub``."""

import sys

from adapters_hub.cli import main

sys.exit(main())
