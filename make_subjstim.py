"""Gather the features of the stimuli that a subject saw, split into training and test, each stimulus once.

Reads   mrifeat/{subject}/{subject}_stims*.npy, nsdfeat/{featname} (or --input_dir)
Writes  nsdfeat/subjfeat/{subject}_{use_stim}_{featname}.h5; with --npy also …_{tr,te}.npy, the original's matrices
"""
from utils import cli, layout
from utils.features import subjstim


def main(argv=None, dataset="nsd"):
    parser = cli.parser(__doc__, "python make_subjstim.py --featname init_latent --use_stim each --subject subj01")
    cli.add_subject(parser)
    parser.add_argument("--featname", type=cli.name, required=True,
                        help="feature: init_latent, c, blip, … (…_occluded for the twin)")
    parser.add_argument("--use_stim", choices=["each", "ave"], required=True,
                        help="rows of a trial (each) or of a stimulus (ave); the features are stored once either way")
    parser.add_argument("--input_dir", metavar="DIR", help="folder of shards (default: nsdfeat/{featname})")
    parser.add_argument("--npy", action="store_true",
                        help="also write the original's matrices, with a row per trial for each")
    args = cli.parse(parser, argv)

    made = subjstim.gather(layout.Workspace.of(args), args.featname, args.use_stim, dataset, folder=args.input_dir,
                           npy=args.npy, overwrite=args.overwrite)
    for split, (trials, stimuli, dims, dtype) in made.items():
        print(f"{args.subject} {args.featname} {split}: {trials} rows of {stimuli} stimuli × {dims} dims {dtype}")


if __name__ == "__main__":
    cli.run(main)
