"""``python -m uplift``: the command line without its script."""

import sys

from uplift.cli.main import main

sys.exit(main())
