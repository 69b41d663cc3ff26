"""The library behind the scripts: each module one subject, named for it."""
import sys

__version__ = "0.1.0"

if sys.version_info < (3, 11):  # as pyproject.toml's requires-python; every script comes by here before anything else
    sys.exit("error: Python %d.%d is too old — use 3.11 or newer (make PYTHON=python3.11)" % sys.version_info[:2])
