"""``python -m adaptergit.cli``."""

from adaptergit.cli import main

main()
