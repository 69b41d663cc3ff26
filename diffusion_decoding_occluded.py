"""As diffusion_decoding.py, for occluded images."""
from diffusion_decoding import main
from utils import cli

if __name__ == "__main__":
    cli.run(main, dataset="occluded")
