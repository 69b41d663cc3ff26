"""List NSD's files with their sizes, or fetch one.

    ppdata SUBJECT    below nsddata/ppdata/SUBJECT
    betas SUBJECT     the sessions of betas that make_subjmri.py reads
    roi SUBJECT       the label volumes that --atlas can name
    stimuli           below nsddata_stimuli/stimuli/nsd
    list PREFIX       every file whose key starts so
    fetch KEY         copy one file to the same place below --workdir (resumable)

Reads   NSD_ROOT (default: s3://natural-scenes-dataset, anonymously)
Writes  nothing, but for fetch: WORKDIR/KEY
"""
from utils import cli, layout
from utils.errors import Problem
from utils.nsd import object_keys, s3

OF_SUBJECT = {"ppdata": lambda subject: f"nsddata/ppdata/{subject}/", "betas": object_keys.betas_prefix,
              "roi": lambda subject: object_keys.atlas_key(subject, "streams").removesuffix("streams.nii.gz")}


def main(argv=None):
    parser = cli.parser(__doc__, "python get_data.py ppdata subj01")
    parser.add_argument("what", choices=[*OF_SUBJECT, "stimuli", "list", "fetch"])
    parser.add_argument("name", nargs="?", metavar="SUBJECT|PREFIX|KEY")
    args = cli.parse(parser, argv)
    if args.what in OF_SUBJECT and args.name not in layout.SUBJECTS:
        parser.error(f"{args.what} needs a subject, one of {' '.join(layout.SUBJECTS)}")
    if args.what in ("list", "fetch") and not args.name:
        parser.error(f"{args.what} needs a {'key' if args.what == 'fetch' else 'prefix'}")

    root = s3.Root.from_env()
    if args.what == "fetch":
        print(root.fetch(args.name, s3.local_path(args.workdir, args.name), args.overwrite))
        return
    if args.what in OF_SUBJECT:
        prefix = OF_SUBJECT[args.what](args.name)
    else:
        prefix = args.name if args.what == "list" else object_keys.STIMULI_KEY.removesuffix("nsd_stimuli.hdf5")
    found = root.list(prefix)
    if not found:
        raise Problem(f"nothing is below {root.name(prefix)}", "check NSD_ROOT and the name")
    for key, size in found:
        # A name from outside could hold codes that steer a terminal.
        print(f"{size:>15,}  {key if key.isprintable() else ascii(key)}")
    print(f"{sum(size for _, size in found):>15,}  in {len(found)} files")


if __name__ == "__main__":
    cli.run(main)
