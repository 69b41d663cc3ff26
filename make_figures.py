"""Draw one subject's figures, PDF and PNG: reconstructions, identification, decoding accuracy by feature and ROI.

Rows of the reconstructions are evenly spaced ranks of identification, from best to worst: none is hand-picked.
A figure whose inputs are not there is skipped, and that is said.

Reads   decoded/image-*/{subject}/samples/, scores/per_image_scores_{subject}_*.csv and .json,
        decoded/{subject}/*_scores_*.json and .npy, nsdfeat/subjfeat/
Writes  figures/{reconstructions,captions}{,_occluded}_{subject}, identification_…, decoding_… and rois_…, .pdf and
        .png
"""
import functools

from utils import cli, layout
from utils.errors import Problem
from utils.report import figures, roi_figures
from utils.storage import picture_files


def main(argv=None):
    parser = cli.parser(__doc__, "python make_figures.py --subject subj01")
    cli.add_subject(parser)
    parser.add_argument("--images", type=int, default=7, metavar="N", help="rows of reconstructions (default: 7)")
    parser.add_argument("--rank_by", choices=layout.EVALUATION_FEATURES, default="clip", metavar="FEATURE",
                        help="feature whose identification ranks the images (default: clip)")
    args = cli.parse(parser, argv)
    if args.images < 1:
        parser.error("--images must be at least 1")

    ws = layout.Workspace.of(args)
    drawn = {
        "reconstructions": (figures.reconstructions(ws, False, args.rank_by, args.images), "diffusion_decoding.py"),
        "reconstructions_occluded": (figures.reconstructions(ws, True, args.rank_by, args.images),
                                     "diffusion_decoding_occluded.py"),
        "captions": (figures.captions_and_depth(ws, "nsd", args.images), "decode_captions.py"),
        "captions_occluded": (figures.captions_and_depth(ws, "occluded", args.images), "decode_captions_occluded.py"),
        "identification": (figures.identification_by_feature(ws), "identification.py"),
        "decoding": (figures.decoding_by_roi(ws), "ridge.py for two targets or ROIs"),
        "rois": (roi_figures.by_roi(ws), "ridge.py for a target in each of two or more ROIs"),
    }
    if not any(figure for figure, _ in drawn.values()):
        raise Problem(f"{args.workdir} has nothing of {args.subject} to draw", "run diffusion_decoding.py first")
    for name, (figure, stage) in drawn.items():
        if figure is None:
            cli.say(f"{name}: skipped, it needs {stage}")
        else:
            print(*picture_files.save_figure(figure, functools.partial(ws.figure, name)), sep="\n")


if __name__ == "__main__":
    cli.run(main)
