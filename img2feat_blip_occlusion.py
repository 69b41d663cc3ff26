"""As img2feat_blip.py, for occluded images."""
from img2feat_blip import main
from utils import cli

if __name__ == "__main__":
    cli.run(main, dataset="occluded")
