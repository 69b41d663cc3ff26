"""As make_vgg19bdpy.py, for occluded images."""
from make_vgg19bdpy import main
from utils import cli

if __name__ == "__main__":
    cli.run(main, dataset="occluded",
            example="python make_vgg19bdpy_occlusion.py --start 0 --end 73000 --dataset occluded")
