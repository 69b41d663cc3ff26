"""The small AlexNet, whose layers judge reconstructions from edges and colours up to what is in them."""
from mini_nsd.training import classifiers


def train(cache) -> None:
    classifiers.train("alexnet", cache)


def evaluate() -> dict:
    return classifiers.evaluate("alexnet")
