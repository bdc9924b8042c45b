"""``python -m perfuse.cli``."""

from perfuse.cli.main import main

main()
