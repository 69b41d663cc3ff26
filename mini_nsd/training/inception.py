"""The small Inception v3, whose last pooled layer judges reconstructions by what is in them."""
from mini_nsd.training import classifiers


def train(cache) -> None:
    classifiers.train("inception", cache)


def evaluate() -> dict:
    return classifiers.evaluate("inception")
