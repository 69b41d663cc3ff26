"""From decoded features to images: what diffusion_decoding.py and its twin do around the diffusion model."""
import math

import numpy as np
import torch

from utils import cli, diffusion, features, images, layout, models, nsd, occlusion, s3, store, trials
from utils.errors import Problem

N_SAMPLES = 5  # per image (SPEC §5)
AUTO_BATCH = {"cuda": 32, "mps": 8, "cpu": 16}  # samples denoised at once
ROI_OF = {"init_latent": "early", "c": "ventral"}  # Takagi & Nishimoto (CVPR 2023), §3.4


class Inputs:
    """The features that feed the reconstructions of one run, from brain activity or, for a recovery check, true.

    Every read goes through here, and every file read is in `paths`, so that the run's record names all of them.
    """

    def __init__(self, args, ws):
        self.args, self.ws, self.paths = args, ws, []

    def feature(self, name):
        """(test images, dims) float32 of a feature: decoded, or true with --true_features."""
        target = layout.of_dataset(name, self.args.dataset)
        if self.args.true_features:
            return self._true(target)
        roi = getattr(self.args, f"roi_{name}")
        tags = [layout.VoxelChoice.of(self.args).tag(each) for each in roi]
        dataset = "occluded" if self.args.dataset == "occluded" else None
        stage = "ridge_occlusion.py" if dataset else "ridge.py"
        path = self.ws.scores(tags, target, dataset, cli.control(self.args))
        self.paths.append(path)
        return store.read_npy(path, made_by=f"{stage} --target {target} --roi {' '.join(roi)} --subject {self.ws.subject}"
                              + (f" --shuffle_trials {self.args.shuffle_trials}" if cli.control(self.args) else ""))

    def _true(self, target):
        found = [path for use in ("ave", "each") if (path := self.ws.subject_features(use, target)).exists()]
        path = found[0] if found else self.ws.subject_features("ave", target)
        with store.SubjectFeatures(path, f"make_subjstim.py --featname {target} --use_stim ave") as matrix:
            self.paths.append(path)
            return matrix.features("te")[:].astype(np.float32)


def add_arguments(parser, dataset):
    """The flags of diffusion_decoding.py and its twin."""
    cli.add_imgidx(parser, "the test images")
    cli.add_gpu(parser)
    cli.add_subject(parser)
    cli.add_seed(parser)
    cli.add_voxel_choice(parser)
    cli.add_run(parser, dataset)
    parser.add_argument("--roi_init_latent", nargs="+", default=[ROI_OF["init_latent"]], metavar="ROI",
                        help="ROIs that the latent was decoded from (default: early)")
    parser.add_argument("--roi_c", nargs="+", default=[ROI_OF["c"]], metavar="ROI",
                        help="ROIs that the conditioning was decoded from (default: ventral)")
    parser.add_argument("--n_samples", type=int, default=N_SAMPLES, help="samples per image (default: 5)")
    parser.add_argument("--batch_size", default="auto", help="samples denoised at once, or auto (default)")
    parser.add_argument("--precision", choices=["auto", "float32", "bfloat16", "float16"], default="auto",
                        help="auto: float16 on a GPU, bfloat16 on a CPU that has it, else float32")
    parser.add_argument("--scheduler", choices=diffusion.SCHEDULERS, default="ddim", help="solver (default: ddim)")
    parser.add_argument("--steps", type=int, default=diffusion.STEPS, help="steps of the whole schedule (default: 50)")
    parser.add_argument("--strength", type=float, default=diffusion.STRENGTH,
                        help="share of the schedule that the start image is noised to (default: 0.8)")
    parser.add_argument("--guidance", type=float, default=diffusion.GUIDANCE, help="classifier-free guidance (default: 5)")


def reconstruct(args):
    """Make the missing images of a run. Prints how many there are, and where."""
    check(args)
    ws, device = layout.Workspace.of(args), cli.device(args.gpu)
    inputs = Inputs(args, ws)
    latents, conditioning = inputs.feature("init_latent"), inputs.feature("c")
    model = diffusion.LatentDiffusion(models.stable_diffusion(device, models.precision(args.precision, device)))
    for name, found, shape in (("init_latent", latents, model.latent_shape), ("c", conditioning, model.text_shape)):
        if found.shape[1:] != (math.prod(shape),):
            raise Problem(f"{name} has {found.shape[1]} dims but {models.source('sd')} takes {math.prod(shape)} {shape}",
                          "decode features of the same model (NSD_MODELS)")
    run = cli.run_name(args)
    folder = ws.samples(run)
    wanted = record(args, inputs)
    store.claim_folder(folder, wanted, args.overwrite)
    chosen = cli.image_range(args.imgidx, len(latents), "test image")
    save_originals(args, ws, folder, chosen)

    items = [(image, sample) for image in chosen for sample in range(args.n_samples)]
    size = features.batch_size(args, device, AUTO_BATCH)
    batches = [items[start:start + size] for start in range(0, len(items), size)]
    with cli.progress(desc=run, total=len(items), unit="sample") as bar:
        for batch in batches:
            missing = [item for item in batch if args.overwrite or not layout.sample_image(folder, *item).exists()]
            # A batch with any sample missing is computed whole: kernels may round differently for another batch,
            # and a resumed run has to give the same bytes as one that was never stopped.
            if missing:
                rows = [image for image, _ in batch]
                pixels = denoise(model, args, latents[rows], conditioning[rows], batch)
                for item, image in zip(batch, images.to_pixels(pixels)):
                    if item in missing:
                        images.save(layout.sample_image(folder, *item), image)
            bar.update(len(batch))
    print(f"{run}: {len(chosen)} images × {args.n_samples} samples in {folder}")


def check(args):
    """Raises Problem for settings that no run can have."""
    if args.true_features and args.shuffle_trials is not None:
        raise Problem("--true_features with --shuffle_trials", "choose the recovery check or the control")
    if args.n_samples < 1 or args.steps < 1:
        raise Problem("--n_samples and --steps must be at least 1", "give a positive number")
    if not 0 < args.strength <= 1:
        raise Problem(f"--strength {args.strength} is not in (0, 1]", "give a share of the schedule")


def denoise(model, args, latents, conditioning, batch):
    """(n, dims) latents and conditioning of `batch`, a list of (image, sample) → (n, 3, size, size) in [-1, 1]."""
    side = model.size // model.factor
    noise = torch.stack([
        diffusion.sample_noise(args.seed, image, sample, (model.latent_channels, side, side)) for image, sample in batch
    ])
    start = None if args.conditioning == "c" else model.start_image(torch.from_numpy(latents))
    text = None if args.conditioning == "z" else torch.from_numpy(conditioning).reshape(-1, *model.text_shape)
    return model.img2img(start, text, noise, strength=args.strength, steps=args.steps, guidance=args.guidance,
                         solver=args.scheduler)


def record(args, inputs):
    """What makes the images of a run; the number of samples is left out, so that a run can be extended."""
    options = {name: getattr(args, name) for name in (
        "method", "dataset", "conditioning", "true_features", "shuffle_trials", "seed", "scheduler", "steps", "strength",
        "guidance", "precision")}
    options["method"] = "cvpr" if args.method == "latent" else args.method
    return store.record("diffusion_decoding.py", options, inputs.paths, **models.identity("sd"))


def save_originals(args, ws, folder, chosen):
    """{i}_org.png, the whole image that the subject saw or that was occluded; for occluded runs {i}_occ.png too."""
    stims = trials.test_stimuli(ws)
    missing = [image for image in chosen if not layout.original_image(folder, image).exists()]
    if missing:
        whole = nsd.Stimuli(nsd.stimuli_path(s3.Root.from_env(), args.workdir))
        for image in missing:
            images.save(layout.original_image(folder, image),
                        images.resize(whole.read([stims[image]])[0], images.SAMPLE_SIZE))
    if args.dataset == "occluded":
        occluded = occlusion.OccludedStimuli(layout.occluded_stimuli(args.workdir))
        for image in chosen:
            if not layout.occluded_image(folder, image).exists():
                images.save(layout.occluded_image(folder, image),
                            images.resize(occluded.read([stims[image]])[0], images.SAMPLE_SIZE))
