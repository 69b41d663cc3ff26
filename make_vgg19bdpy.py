"""Extract VGG19's layers from the stimuli, all in one forward pass of the Caffe model.

By default the eight layers that the inversion needs. One image of conv1_2 is 3.2 million numbers: give --subject to
extract only what that subject saw, and see ridge.py --stream for layers that need never be stored.

Reads   nsd_stimuli.hdf5 (or nsd_stimuli_occluded.hdf5)
Writes  nsdfeat/conv1_2/ … nsdfeat/fc8/ (with --dataset occluded: …_occluded), one HDF5 file per 256 stimuli
"""
from utils import cli
from utils.features import extraction
from utils.generate import gan_inversion


def main(argv=None, dataset="nsd", example="python make_vgg19bdpy.py --imgidx 0 73000"):
    parser = cli.parser(__doc__, example)
    extraction.add_arguments(parser, dataset)
    extraction.add_store(parser)
    parser.add_argument("--layers", nargs="+", default=list(gan_inversion.LAYERS), metavar="LAYER",
                        help=f"layers of VGG19 (conv1_1 … fc8), or all (default: {' '.join(gan_inversion.LAYERS)})")
    parser.add_argument("--start", type=int, metavar="A", help="the same as the first number of --imgidx")
    parser.add_argument("--end", type=int, metavar="B", help="the same as the second number of --imgidx")
    args = cli.parse(parser, argv)
    if args.start is not None or args.end is not None:
        if args.imgidx is not None or args.end is None or min(args.start or 0, args.end) < 0:
            parser.error("give --start A --end B, or --imgidx A B; neither A nor B is negative")
        args.imgidx = [args.start or 0, args.end]
    gan_inversion.extract(args)


if __name__ == "__main__":
    cli.run(main)
