"""Run a module on the emulated device: ``python -m emulated_cuda MODULE ARGUMENTS``."""

import runpy
import sys

from . import install

install()
del sys.argv[0]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
