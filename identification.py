"""Identify each test image among the others by its reconstructions, with interval and p; chance is 0.5.

An image's accuracy is the share of the other images whose reconstructions correlate less with it than its own; r is
averaged over samples, ties count one half. The interval is over images; p is against reconstructions given to images
at random. Any number of images and samples, as found on disk.

Reads   identification/{method}/{subject}/{feature}.h5 (or {i}_org_{feature}.npy and {i}_{sample}_{feature}.npy)
Writes  scores/per_image_scores_{subject}_{method}_{feature}.csv (imgidx, mean_corr, accuracy) and .json
"""
from utils import cli, layout
from utils.evaluate import identification
from utils.storage import provenance, text_files


def main(argv=None, dataset="nsd"):
    parser = cli.parser(__doc__, "python identification.py --usefeat inception --subject subj01 --method cvpr")
    cli.add_subject(parser)
    cli.add_run(parser, dataset)
    cli.add_seed(parser)
    parser.add_argument("--usefeat", nargs="+", required=True, choices=layout.EVALUATION_FEATURES, metavar="FEATURE",
                        help=f"features to compare: {' '.join(layout.EVALUATION_FEATURES)}")
    parser.add_argument("--n_samples", type=int, metavar="N", help="compare the first N of each image (default: all)")
    args = cli.parse(parser, argv)
    if args.n_samples is not None and args.n_samples < 1:
        parser.error("--n_samples must be at least 1")

    ws, run = layout.Workspace.of(args), cli.run_name(args)
    folder = ws.identification(run)
    twin = "_occlusion" if args.dataset == "occluded" else ""
    made_by = f"img2feat_decoded{twin}.py --subject {args.subject} --method {args.method} --usefeat"
    source = text_files.read_json(layout.manifest(folder)) if layout.manifest(folder).exists() else None
    for feature in args.usefeat:
        with cli.progress(desc=f"{run} {feature}", unit="image") as bar:
            features, r, found = identification.identify(
                folder, feature, f"{made_by} {feature}", args.n_samples, args.seed, bar.update)
        options = {"subject": args.subject, "run": run, "feature": feature, "seed": args.seed}
        identification.write_scores(ws.per_image_scores(run, feature), features.images, r,
                                    provenance.record("identification.py", options, source=source, **found))
        print(identification.sentence(args.subject, run, feature, found))


if __name__ == "__main__":
    cli.run(main)
