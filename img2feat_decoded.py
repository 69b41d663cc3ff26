"""Extract the features that identification compares, from the originals and the reconstructions of a run.

Reads   decoded/image-{method}/{subject}/samples/*.png
Writes  identification/{method}/{subject}/{feature}.h5: originals and samples by image, one file per feature;
        with --npy also the original's {i}_org_{feature}.npy and {i}_{sample}_{feature}.npy
"""
from utils import cli
from utils.evaluate import network_features
from utils.models import checkpoints


def main(argv=None, dataset="nsd"):
    parser = cli.parser(__doc__, "python img2feat_decoded.py --gpu 0 --subject subj01 --method cvpr")
    cli.add_subject(parser)
    cli.add_imgidx(parser, "the test images; their pictures must all be there")
    cli.add_gpu(parser)
    checkpoints.add_revision(parser)
    cli.add_run(parser, dataset)
    cli.add_usefeat(parser, "features to extract")
    parser.add_argument("--npy", action="store_true",
                        help="also write the original's file for each picture and feature")
    parser.add_argument("--batch_size", type=int, default=32, help="pictures a forward pass (default: 32)")
    args = cli.parse(parser, argv)
    if args.batch_size < 1:
        parser.error("--batch_size must be at least 1")
    network_features.extract(args)


if __name__ == "__main__":
    cli.run(main)
