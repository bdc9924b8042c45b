"""``python -m perfuse_conformance.bridged``: draws with every recipe, and writes the table."""

from perfuse_conformance.bridged.page import main

if __name__ == "__main__":
    main()
