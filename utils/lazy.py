"""Large libraries, imported when they are first used: `--help` and stages without networks never wait for torch.

A stand-in goes where the import was, `torch = lazy.module("torch")`. Unlike importlib's LazyLoader it leaves
sys.modules alone, where other libraries look to see whether torch is in play.
"""
import functools
import importlib
import importlib.util


class _Module:
    """What `module` returns. Attributes are the module's own; a submodule that nobody imported yet is imported."""

    def __init__(self, name, before):
        self._name, self._before = name, before

    def __getattr__(self, attribute):
        if self._before is not None:
            self._before()
            self._before = None
        found = importlib.import_module(self._name)
        if not hasattr(found, attribute) and importlib.util.find_spec(f"{self._name}.{attribute}"):
            return importlib.import_module(f"{self._name}.{attribute}")
        return getattr(found, attribute)


def module(name, before=None):
    """A stand-in for module `name`, imported with the first attribute asked for. before: called just before that."""
    return _Module(name, before)


def inference_mode(function):
    """As torch.inference_mode(), but torch is imported by the first call, not by the decoration."""
    @functools.wraps(function)
    def without_gradients(*args, **options):
        import torch

        with torch.inference_mode():
            return function(*args, **options)
    return without_gradients
