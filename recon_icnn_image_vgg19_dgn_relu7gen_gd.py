"""Make a picture of each test image from its decoded VGG19 features, by inversion with the relu7 generator.

Reads   decoded/gan_mod/{layer}/{subject}/streams/*.mat of conv1_2 conv2_2 conv3_4 conv4_4 conv5_4 fc6 fc7 fc8;
        nsd_stimuli.hdf5 (training images, for the spread of true features)
Writes  decoded/gan_recon_img/all_layers/{subject}/streams/recon_image_normalized-VGG19-fc8-{subject}-streams-{i}.tiff,
        and the same before its levels are set, recon_image-VGG19-fc8-{subject}-streams-{i}.mat (recon_image, float32
        RGB) (with --dataset occluded: decoded/gan_recon_img_occluded/…)
"""
import math

from utils import cli
from utils.features import extraction
from utils.generate import gan_inversion


def main(argv=None):
    parser = cli.parser(__doc__, "python recon_icnn_image_vgg19_dgn_relu7gen_gd.py --subject subj01 --gpu 0")
    cli.add_subject(parser, default="subj01")
    cli.add_imgidx(parser, "the test images")
    cli.add_gpu(parser)
    cli.add_seed(parser)
    cli.add_dataset(parser, "nsd")
    extraction.add_images(parser)
    parser.add_argument("--true_features", action="store_true",
                        help="the recovery check: invert what make_vgg19fromdecode.py --true_features wrote")
    parser.add_argument("--shuffle_trials", type=int, metavar="SEED",
                        help="the control: invert what make_vgg19fromdecode.py --shuffle_trials SEED wrote")
    parser.add_argument("--n_iter", type=int, default=gan_inversion.N_ITER, metavar="N",
                        help="iterations (default: 200)")
    parser.add_argument("--learning_rate", type=float, default=gan_inversion.LEARNING_RATE[0], metavar="X",
                        help="at the first iteration, falling to 0; fewer iterations want a lower one: 0.3 for 50 "
                        "(default: 2)")
    parser.add_argument("--precision", choices=["auto", "float32", "bfloat16"], default="float32",
                        help="of the networks; auto: bfloat16 on a CPU that has it, else float32 (default: float32)")
    parser.add_argument("--convolutions", choices=["auto", "direct", "winograd"], default="auto",
                        help="winograd takes fewer multiplications for the large layers, on a CPU in float32; auto: "
                        "winograd where it can be had (default)")
    parser.add_argument("--levels", choices=["auto", "stretch", "clip"], default="auto",
                        help="stretch each picture's range to 0–255 as the cookbook does, or clip it to 0–255 "
                        "(default: auto, stretch for the published generator, clip for one that says so)")
    parser.add_argument("--batch_size", default="auto", help="pictures inverted at once, or auto (default)")
    args = cli.parse(parser, argv)
    if args.n_iter < 1:
        parser.error("--n_iter must be at least 1")
    if not 0 < args.learning_rate < math.inf:
        parser.error("--learning_rate must be above 0")
    gan_inversion.reconstruct(args)


if __name__ == "__main__":
    cli.run(main)
