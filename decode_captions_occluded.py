"""As decode_captions.py, for occluded images."""
from decode_captions import main
from utils import cli

if __name__ == "__main__":
    cli.run(main, dataset="occluded")
