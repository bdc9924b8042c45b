"""``python -m perfuse_conformance.matrix``: draws the picture of all backends and models."""

from perfuse_conformance.report.matrix import main

if __name__ == "__main__":
    main()
