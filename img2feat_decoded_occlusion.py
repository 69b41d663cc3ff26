"""As img2feat_decoded.py, for the reconstructions of occluded images."""
from img2feat_decoded import main
from utils import cli

if __name__ == "__main__":
    cli.run(main, dataset="occluded")
