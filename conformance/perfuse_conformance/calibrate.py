"""``python -m perfuse_conformance.calibrate``: measures the errors of reference engines."""

from perfuse_conformance.runner.calibrate import main

if __name__ == "__main__":
    main()
