"""As img2feat_sd1_parallel.py, for occluded images."""
from img2feat_sd1_parallel import main
from utils import cli

if __name__ == "__main__":
    cli.run(main, dataset="occluded")
