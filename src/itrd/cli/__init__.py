"""The command line. Flags, types, YAML and help are derived from the settings classes."""

from itrd.cli.main import main

__all__ = ["main"]
