"""The order of the stages, and the command of each (SPEC §2)."""
from utils import layout, reconstruction

ALL_ROIS = ["early", "ventral", "midventral", "midlateral", "lateral", "parietal"]  # SPEC §2b
CONTROL_SEED = 0


def plan(args):
    """The commands, each a list of strings, that produce what the arguments of run_pipeline.py ask for."""
    common = ["--workdir", str(args.workdir)] + (["--overwrite"] if args.overwrite else []) \
        + (["--debug"] if args.debug else [])
    subject = ["--subject", args.subject]
    gpu = ["--gpu", str(args.gpu)]
    steps = [["make_subjmri.py", *subject], ["img2feat_sd.py"]]
    if "occluded" in args.datasets:
        steps.append(["generate_occluded_images.py", "--seed", str(args.seed)])
    for dataset in args.datasets:
        steps += features(dataset, subject, gpu)
    for dataset in args.datasets:
        for method in args.methods:
            steps += evaluated(["--method", method], dataset, args, subject, gpu)
    if args.controls:
        shuffled = ["--shuffle_trials", str(CONTROL_SEED)]
        for target in ("init_latent", "c"):
            steps.append(["ridge.py", *subject, *gpu, "--target", target, "--roi", reconstruction.ROI_OF[target], *shuffled])
        for control in (["--true_features"], shuffled):
            steps += evaluated(["--method", "cvpr", *control], "nsd", args, subject, gpu)
    steps.append(["make_figures.py", *subject])
    return [step + common for step in steps]


def features(dataset, subject, gpu):
    """Extract and decode what the cvpr method needs."""
    occluded = dataset == "occluded"
    extract, pair, fit = (("img2feat_sd1_occlusion.py", "make_subjstim_occluded.py", "ridge_occlusion.py") if occluded
                          else ("img2feat_sd1_parallel.py", "make_subjstim.py", "ridge.py"))
    steps = [[extract, *subject, *gpu]]
    targets = {layout.of_dataset(name, dataset): roi for name, roi in reconstruction.ROI_OF.items()}
    steps += [[pair, "--featname", target, "--use_stim", "each", *subject] for target in targets]
    return steps + [[fit, *subject, *gpu, "--target", target, "--roi", roi] for target, roi in targets.items()]


def evaluated(run, dataset, args, subject, gpu):
    """Reconstruct, extract the evaluation's features, and identify."""
    sampling = ["--seed", str(args.seed)]
    for name in ("n_samples", "steps", "scheduler"):
        if getattr(args, name) is not None:
            sampling += [f"--{name}", str(getattr(args, name))]
    if args.imgidx:
        sampling += ["--imgidx", *map(str, args.imgidx)]
    decode, judge, identify = (
        ("diffusion_decoding_occluded.py", "img2feat_decoded_occlusion.py", "identification_occluded.py")
        if dataset == "occluded" else ("diffusion_decoding.py", "img2feat_decoded.py", "identification.py"))
    return [[decode, *subject, *gpu, *run, *sampling], [judge, *subject, *gpu, *run],
            [identify, *subject, *run, "--usefeat", *layout.EVALUATION_FEATURES]]
