"""What all folders need: flags, one-line errors, the paths of artifacts, pictures in memory, plotting, devices.

The library behind the scripts lies in the folders, one subject each (docs/architecture.md).
"""
import sys

__version__ = "0.1.0"

if sys.version_info < (3, 11):  # as pyproject.toml's requires-python; every script comes by here before anything else
    sys.exit("error: Python %d.%d is too old — use 3.11 or newer (make PYTHON=python3.11)" % sys.version_info[:2])
