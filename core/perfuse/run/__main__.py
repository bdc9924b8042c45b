"""``python -m perfuse.run SCRIPT …``: another program, its Diffusers pipelines accelerated."""

import sys

from perfuse.bridge.script import main

main(sys.argv[1:])
