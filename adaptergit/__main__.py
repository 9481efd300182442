"""``python -m adaptergit``."""

from adaptergit.cli import main

main(prog_name="adaptergit")
