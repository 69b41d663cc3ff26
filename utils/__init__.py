"""The library behind the scripts: each module one subject, named for it."""

__version__ = "0.1.0"
