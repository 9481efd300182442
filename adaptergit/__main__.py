"""``python -m adaptergit``."""

import sys

try:
    from adaptergit.cli import main

    main(prog_name="adaptergit")
except KeyboardInterrupt:  # before the command has begun
    sys.exit(130)
