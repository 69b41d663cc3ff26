"""As make_subjstim.py, for the features of occluded images."""
from make_subjstim import main
from utils import cli

if __name__ == "__main__":
    cli.run(main, dataset="occluded")
