"""As identification.py, for the reconstructions of occluded images."""
from identification import main
from utils import cli

if __name__ == "__main__":
    cli.run(main, dataset="occluded")
