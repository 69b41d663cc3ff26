"""Stream a subject's betas from NSD and keep the voxels of each ROI.

Where NSD has a session as .hdf5 too, and few enough voxels are wanted, only their chunks are read, by HTTP Range.
Nothing but the ROIs' voxels touches the disk. A killed run resumes after its last whole session.

Reads   NSD_ROOT: nsd_expdesign.mat, responses.tsv, roi/{atlas}.nii.gz and its table, betas_session*.hdf5 or .nii.gz
Writes  mrifeat/{subject}/{subject}_stims.npy, _stims_ave.npy, _stims_ave_test.npy,
        {subject}_stims_tridx.npy and _stims_ave_tridx.npy (1 where a trial or stimulus trains, 0 where it tests),
        {subject}_{roi}_betas_{tr,te}.npy (int16, NSD's integers), {subject}_{roi}_betas_ave_{tr,te}.npy (float32)
"""
from utils import cli, layout
from utils.nsd import beta_source, mrifeat, s3


def main(argv=None):
    parser = cli.parser(__doc__, "python make_subjmri.py --subject subj01 --workers 2")
    cli.add_subject(parser, default="subj01")
    cli.add_voxel_choice(parser)
    parser.add_argument("--roi", type=cli.name, nargs="+", metavar="ROI",
                        help="only these ROIs of the atlas (default: all)")
    parser.add_argument("--sessions", type=int, metavar="N",
                        help="only the first N sessions; the paper used 37 (default: all)")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="sessions read at a time (default: 1)")
    parser.add_argument("--source", choices=beta_source.SOURCES, default=beta_source.AUTO,
                        help="of the betas: hdf5, by voxel; nifti, whole volumes; auto, whichever takes less time, "
                        "which one line says (default). The arrays are the same")
    args = cli.parse(parser, argv)
    for name in ("sessions", "workers"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1")

    made = mrifeat.extract(layout.Workspace.of(args), s3.Root.from_env(), layout.VoxelChoice.of(args), rois=args.roi,
                           limit=args.sessions, workers=args.workers, overwrite=args.overwrite, source=args.source)
    print(f"{args.subject}: {made.trials} trials of {made.stimuli} stimuli in {made.sessions} sessions, "
          f"{made.test_stimuli} test stimuli")
    for roi, voxels in made.voxels.items():
        print(f"{roi}: {voxels} voxels")


if __name__ == "__main__":
    cli.run(main)
