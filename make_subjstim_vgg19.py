"""As make_subjstim.py --use_stim ave, for layers of VGG19.

Reads   mrifeat/{subject}/{subject}_stims*.npy, nsdfeat/{layer}/
Writes  nsdfeat/subjfeat/{subject}_ave_{layer}.h5 (with --dataset occluded: …_{layer}_occluded.h5)
"""
from utils import cli, layout
from utils.features import subjstim
from utils.generate import gan_inversion


def main(argv=None):
    parser = cli.parser(__doc__, "python make_subjstim_vgg19.py --layer conv1_1 --subject subj01")
    cli.add_subject(parser)
    parser.add_argument("--layer", nargs="+", required=True, metavar="LAYER",
                        help="conv1_1 … conv5_4, fc6, fc7, fc8; all: what the inversion needs and any other extracted")
    parser.add_argument("--dataset", choices=layout.DATASETS, default="nsd",
                        help="whole or occluded images (default: nsd)")
    parser.add_argument("--npy", action="store_true", help="also write the original's matrices")
    args = cli.parse(parser, argv)

    for layer in gan_inversion.layers_to_gather(args):
        feature = layout.of_dataset(layer, args.dataset)
        made = subjstim.gather(layout.Workspace.of(args), feature, "ave", args.dataset, npy=args.npy,
                               overwrite=args.overwrite)
        for split, (_, stimuli, dims, dtype) in made.items():
            print(f"{args.subject} {feature} {split}: {stimuli} stimuli × {dims} dims {dtype}")


if __name__ == "__main__":
    cli.run(main)
