"""``python -m perfuse_conformance.calibrate``: measures what right engines reach."""

from perfuse_conformance.runner.calibrate import main

if __name__ == "__main__":
    main()
