"""Ask whether activity holds what an occluder hid: a completion index per ROI, 0 = visible only, 1 = as if seen whole.

Decoders are trained on whole images alone and applied to sessions of occluded viewing. The index is read along what is hidden
beyond what the visible context predicts, so that a decoder's or a model's own guess does not count as the brain's.
Printed with a 95% interval over images, a permutation p corrected over ROIs, and the control that must be 0: objects
that are wholly hidden. docs/amodal_completion.md derives the index and says how it can mislead.

Reads   NSD_ROOT: occluded_viewing/, nsd_stimuli.hdf5; mrifeat/{subject}/ (make_subjmri.py);
        nsdfeat/subjfeat/{subject}_*_init_latent.h5 if it is there
Writes  amodal_completion/{subject}/{subject}_index.csv and .json, _margins.csv, _patterns.csv, _decoded.h5,
        _completion_index.png and .pdf
"""
from utils import cli, completion_figures, completion_stage, layout


def main(argv=None):
    parser = cli.parser(__doc__, "python amodal_completion.py --subject subj01")
    cli.add_subject(parser)
    cli.add_gpu(parser)
    cli.add_seed(parser)
    parser.add_argument("--roi", nargs="+", choices=layout.ROIS, help="only these ROIs (default: all)")
    parser.add_argument("--inpaint", type=int, default=0, metavar="N",
                        help="control: what the diffusion model invents for N views without a brain (default: 0, not run)")
    args = cli.parse(parser, argv)
    if args.inpaint < 0:
        parser.error("--inpaint must not be negative")

    rows, summary = completion_stage.run(args)
    for row in rows:
        if row["primary"]:
            print(completion_stage.sentence(row))
    for how, (value, low, high) in summary["generator"].items():
        print(f"diffusion model without a brain, {how}: {value:.2f} [{low:.2f}, {high:.2f}] of what is hidden beyond context")
    for path in completion_figures.write(layout.Workspace.of(args), rows, summary["simulated"]):
        cli.say(str(path))


if __name__ == "__main__":
    cli.run(main)
