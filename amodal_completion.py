"""Ask whether activity holds what an occluder hid: a completion index per ROI, 0 = visible only, 1 = as if seen whole.

Decoders are trained on whole images alone and applied to sessions of occluded viewing. The index is read along what is
hidden beyond what the visible context predicts, so that a decoder's or a model's own guess does not count as the
brain's.
Printed with a 95% interval over images, a permutation p corrected over ROIs, and the control that must be 0: objects
that are wholly hidden. docs/amodal_completion.md derives the index and says how it can mislead.

Beside it, in _closeness.csv: is what is decoded closer to the truth than to the occluder, to what the visible context
predicts, and to what other images hide; with --reconstruct N also of pictures, which it keeps.

Reads   NSD_ROOT: occluded_viewing/, nsd_stimuli.hdf5; mrifeat/{subject}/ (make_subjmri.py);
        nsdfeat/subjfeat/{subject}_*_init_latent.h5 if it is there, and …_c.h5 with --reconstruct
Writes  amodal_completion/{subject}/{subject}_index.csv and .json, _closeness.csv, _margins.csv, _patterns.csv,
        _decoded.h5, _completion_index.png and .pdf, _closeness.png and .pdf; with --reconstruct closeups/ and
        _closeups.png and .pdf
"""
from utils import cli, layout
from utils.completion import closeups, completion_figures, completion_results, completion_stage
from utils.generate import diffusion
from utils.models import checkpoints


def main(argv=None):
    parser = cli.parser(__doc__, "python amodal_completion.py --subject subj01")
    cli.add_subject(parser)
    cli.add_gpu(parser)
    checkpoints.add_revision(parser)
    cli.add_seed(parser)
    parser.add_argument("--roi", nargs="+", choices=layout.ROIS, help="only these ROIs (default: all)")
    parser.add_argument("--inpaint", type=int, default=0, metavar="N",
                        help="control: what the diffusion model invents for N views without a brain (default: 0, none)")
    parser.add_argument("--reconstruct", type=int, default=0, metavar="N",
                        help="reconstruct N views from the activity, and without it (default: 0, none)")
    parser.add_argument("--scheduler", choices=diffusion.SCHEDULERS, default="ddim",
                        help="of reconstructions (default: ddim)")
    parser.add_argument("--steps", type=int, default=diffusion.STEPS, help="of reconstructions (default: 50)")
    args = cli.parse(parser, argv)
    if min(args.inpaint, args.reconstruct) < 0 or args.steps < 1:
        parser.error("--inpaint and --reconstruct must not be negative, --steps must be at least 1")

    rows, summary = completion_stage.run(args)
    for row in rows:
        if row["primary"]:
            print(completion_results.sentence(row))
    for how, (value, low, high) in summary["generator"].items():
        print(f"diffusion model without a brain, {how}: {value:.2f} [{low:.2f}, {high:.2f}] "
              "of what is hidden beyond context")
    for what, (value, low, high) in summary["reconstructions"].items():
        who = "reconstructions from the brain" if what == "brain" else "the same views without a brain"
        print(f"{who}: {value:.2f} [{low:.2f}, {high:.2f}] of what is hidden beyond context")
    ws = layout.Workspace.of(args)
    near = completion_results.read_closeness(ws)
    for row in completion_results.told(near, rows):
        print(completion_results.closeness_sentence(row))
    for path in completion_figures.write(ws, rows, near, closeups.read(ws), summary["simulated"]):
        cli.say(str(path))


if __name__ == "__main__":
    cli.run(main)
