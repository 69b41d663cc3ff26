"""As ridge.py, for the features of occluded images."""
from ridge import main
from utils import cli

if __name__ == "__main__":
    cli.run(main, dataset="occluded")
