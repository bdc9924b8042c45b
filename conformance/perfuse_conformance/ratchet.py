"""``python -m perfuse_conformance.ratchet``: checks the suite's limits."""

import sys

from perfuse_conformance.judge.ratchet import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
