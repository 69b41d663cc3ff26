"""Write decoded VGG19 features in the form that the inversion (and bdpy) reads: a .mat file per layer and test image.

Reads   decoded/{subject}/{subject}_{rois}_scores_{layer}.npy
Writes  decoded/gan_mod/{layer}/{subject}/streams/VGG19-{layer}-{subject}-streams-{i}.mat, key feat, (1, C, H, W) or
        (1, units) float32 (with --dataset occluded: decoded/gan_mod_occluded/…)
"""
from utils import cli
from utils.generate import gan_inversion
from utils.ridge import decoded_features


def main(argv=None):
    parser = cli.parser(__doc__, "python make_vgg19fromdecode.py --subject subj01")
    cli.add_subject(parser)
    decoded_features.add_source(parser, "nsd")
    parser.add_argument("--layers", nargs="+", default=list(gan_inversion.LAYERS), metavar="LAYER",
                        help=f"layers of VGG19, or all (default: {' '.join(gan_inversion.LAYERS)})")
    gan_inversion.write_decoded(cli.parse(parser, argv))


if __name__ == "__main__":
    cli.run(main)
