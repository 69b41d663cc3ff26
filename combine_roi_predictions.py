"""Combine the features decoded from several ROIs into one prediction.

A weighted mean. By default a ROI's weight is its cross-validated R² on the training data (the test images have no
say); --weights equal is the plain mean. Use it as any other ROI: diffusion_decoding.py --roi_c early+ventral.

Reads   decoded/{subject}/{subject}_{roi}_scores_{target}.npy and .json, one per ROI;
        nsdfeat/subjfeat/{subject}_{each,ave}_{target}.h5, if it is there, for the test correlations
Writes  decoded/{subject}/{subject}_{roi+roi}_scores_{target}.npy and .json
        (both in --decoded_dir, if that is given)
"""
import functools
from pathlib import Path

from utils import cli, layout
from utils.ridge import combine_rois, correlation
from utils.storage import provenance, writing


def main(argv=None):
    parser = cli.parser(__doc__, "python combine_roi_predictions.py --subject subj01 --target c --rois early ventral")
    cli.add_subject(parser)
    cli.add_voxel_choice(parser)
    parser.add_argument("--target", type=cli.name, required=True, help="decoded feature: init_latent, c, blip, …")
    parser.add_argument("--rois", type=cli.name, nargs="+", required=True,
                        help="ROIs whose predictions to combine, two or more")
    parser.add_argument("--weights", choices=["cv", "equal"], default="cv",
                        help="cv: by cross-validated R² on the training data; equal: the plain mean (default: cv)")
    parser.add_argument("--dataset", choices=["original", "occluded"], default="original",
                        help="features of whole or occluded images (default: original)")
    parser.add_argument("--decoded_dir", type=Path, metavar="DIR",
                        help="folder of {subject}/ with the predictions, to read and to write (default: decoded in "
                        "--workdir)")
    parser.add_argument("--shuffle_trials", type=int, metavar="SEED", help="combine the control's predictions")
    args = cli.parse(parser, argv)
    if len(args.rois) < 2 or len(set(args.rois)) < len(args.rois):
        parser.error("--rois takes two or more different ROIs")

    ws = layout.Workspace(args.workdir, args.subject, args.decoded_dir)
    choice = layout.VoxelChoice.of(args)
    dataset = "occluded" if args.dataset == "occluded" else None
    paths = [ws.scores([choice.tag(roi)], args.target, dataset, cli.control(args)) for roi in args.rois]
    stage = "ridge_occlusion.py" if dataset else "ridge.py"
    made_by = [f"{stage} --target {args.target} --roi {roi} --subject {args.subject}" for roi in args.rois]
    predictions, records = combine_rois.read_predictions(paths, made_by)
    shares = combine_rois.weights(records, args.rois, args.weights)
    options = combine_rois.shared_options(records[0]) | {"rois": args.rois, "weights": args.weights}
    wanted = provenance.record("combine_roi_predictions.py", options, paths)
    path = ws.scores([choice.tag("+".join(args.rois))], args.target, dataset, cli.control(args))
    with writing.locked(path):
        if provenance.is_done(path, wanted, args.overwrite):
            print(f"{path.stem}: done before")
            return
        with cli.progress(desc=path.stem, total=len(predictions[0]), unit="image") as bar:
            judge = functools.partial(combine_rois.correlations, ws, args.target, records[0])
            profile, pattern = combine_rois.write(path, predictions, shares, wanted, bar.update, judge,
                                                  records[0].get("features"))
    print(f"{path.stem}: " + ", ".join(f"{roi} {share:.2f}" for roi, share in zip(args.rois, shares)))
    if profile is pattern is None:
        cli.say(f"{path.stem}: the true features that {paths[0].name} was decoded against are not there to compare "
                "with")
    else:
        print(f"{path.stem}: {correlation.sentence(profile, pattern)}")


if __name__ == "__main__":
    cli.run(main)
