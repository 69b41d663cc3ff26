"""Fetch NSD's images once, resumable, and check them. A local NSD_ROOT is used in place.

With --subject only the images that the subjects saw are fetched, by HTTP Range, 5.4 GB for one; subjects that follow
add theirs. Every later stage takes the file.

Reads   NSD_ROOT: nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5 (39.6 GB); with --subject nsd_expdesign.mat and
        responses.tsv
Writes  nsd_stimuli.hdf5 in the working folder (with --subject: with stim_ids beside imgBrick), unless NSD_ROOT is local
"""
from utils import cli, layout
from utils.nsd import object_keys, s3, stimuli_copy, stimulus_file


def main(argv=None):
    parser = cli.parser(__doc__, "python img2feat_sd.py --subject subj01")
    parser.add_argument("--subject", nargs="+", choices=layout.SUBJECTS, metavar="subjNN",
                        help="only the images that these subjects saw, and those that are there already (default: all)")
    parser.add_argument("--images", choices=["seen", "test"], default="seen",
                        help="with --subject: all that they saw (default), or the test images, which are enough for "
                        "who only decodes")
    args = cli.parse(parser, argv)
    if args.images == "test" and not args.subject:
        parser.error("--images test goes with --subject")

    root, path = s3.Root.from_env(), layout.stimuli(args.workdir)
    if root.local or not args.subject:
        path = root.fetch(object_keys.STIMULI_KEY, path, args.overwrite or stimuli_copy.source_of(path) is not None)
    else:
        stimuli_copy.fetch(root, path, stimuli_copy.seen(root, args.subject, args.images == "test"), args.overwrite)
    with stimulus_file.Stimuli(path) as stimuli:
        stimuli.check()
        print(f"{path}{' (used in place)' if root.local else ''}: "
              f"{stimuli.count} images, {stimuli.shape[1]}×{stimuli.shape[2]} px RGB, uint8")


if __name__ == "__main__":
    cli.run(main)
