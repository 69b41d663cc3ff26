"""From decoded features to images: what diffusion_decoding.py and its twin do around the diffusion model."""
import numpy as np

from utils import batches, cli, images, layout, lazy
from utils.errors import Problem
from utils.features import extraction
from utils.generate import captioning, depth_maps, diffusion
from utils.models import checkpoints, loading
from utils.nsd import s3, stimulus_file, trials
from utils.occlusion import occluded_stimuli
from utils.ridge import decoded_features
from utils.storage import arrays, picture_files, provenance, text_files, writing

torch = lazy.module("torch")

N_SAMPLES = 5  # per image
AUTO_BATCH = {"cuda": 32, "mps": 8}  # samples denoised at once
# Not on record at these values: what --precision auto comes to is, and runs of before the others were flags lack them.
UNSAID = {"precision": "auto", "size": 1.0, "start": "picture", "guided_below": 1.0}
CPU_PIXELS = 16 * 128 ** 2  # of them on a CPU: more would only take memory
ROI_OF = {"init_latent": "early", "c": "ventral"}  # Takagi & Nishimoto (CVPR 2023), §3.4
# What each method starts from, is conditioned on, and takes as a further channel (arXiv 2306.11536).
START = {"cvpr": "latent", "text": "latent", "gan": "picture", "depth": "picture"}
TEXT = {"cvpr": "c", "text": "captions", "gan": "captions", "depth": "captions"}


class Inputs:
    """What the test images of a run start from and are conditioned on. Everything comes from brain activity, or from
    true features where the run is named a recovery check (docs/published_defects.md#leaked-answers).

    count: test images. paths: the files read, for the run's record.
    """

    def __init__(self, args, ws, method, model):
        self.args, self.ws, self.model, self.paths = args, ws, model, []
        self.count = len(trials.test_stimuli(ws))
        self.own = (args.dataset, decoded_features.suffix(args))
        starts, told = args.conditioning != "c", args.conditioning != "z"
        self.latents = (self._feature("init_latent", model.latent_shape) if starts and START[method] == "latent"
                        else None)
        self.c = self._feature("c", model.text_shape) if told and TEXT[method] == "c" else None
        self.captions = self._captions() if told and TEXT[method] == "captions" else None
        self.pictures = starts and START[method] == "picture"
        if self.pictures:
            self._folder(ws.gan_image(0, *self.own).parent, "recon_icnn_image_vgg19_dgn_relu7gen_gd.py")
        self.depths = method == "depth"
        if self.depths:
            self._folder(ws.depth_folder(*self.own), "dptemb2dpt.py")

    def _feature(self, name, shape):
        source = decoded_features.of_rois(self.args, getattr(self.args, f"roi_{name}"))
        found, path = decoded_features.read(source, self.ws, layout.of_dataset(name, self.args.dataset), shape,
                                            checkpoints.identity("sd"))
        self.paths.append(path)
        if len(found) != self.count:
            raise Problem(f"{path} is of {len(found)} images, the subject has {self.count} test images",
                          "decode it again with --overwrite")
        return found

    def _captions(self):
        occluded = self.args.dataset == "occluded"
        path = self.ws.captions(*(("blip_occluded", "occluded") if occluded else ()), control=self.own[1])
        self.paths.append(path)
        return captioning.read(path, self.count, f"decode_captions{'_occluded' if occluded else ''}.py{self._flags()}")

    def _folder(self, folder, stage):
        if not layout.manifest(folder).exists():
            raise Problem(f"{folder} holds nothing", f"run {stage}{self._flags()}")
        self.paths.append(layout.manifest(folder))

    def _flags(self):
        dataset = " --dataset occluded" if self.args.dataset == "occluded" else ""
        return f" --subject {self.ws.subject}{dataset}" + decoded_features.flags(self.args)

    def start(self, rows):
        """(n, 4, h, w) latents that the test images `rows` start from; None for pure noise."""
        if self.pictures:
            pictures = [images.load(self._made(self.ws.gan_image(row, *self.own))) for row in rows]
            return self.model.encode(images.to_network(pictures, self.model.size))
        if self.latents is None:
            return None
        return self.model.start_latents(torch.from_numpy(_finite(self.latents, rows)), self.args.start)

    def text(self, rows):
        """(n, tokens, width) embeddings that the test images `rows` are conditioned on; None for no conditioning."""
        if self.captions is not None:
            return self.model.embed([self.captions[row] for row in rows])
        return None if self.c is None else torch.from_numpy(_finite(self.c, rows))

    def depth(self, rows):
        """(n, 1, h, w) depth maps in [-1, 1] at the latents' size; None for a model that takes none."""
        if not self.depths:
            return None
        maps = [arrays.read_npy(self._made(self.ws.depth(row, *self.own))) for row in rows]
        for row, found in zip(rows, maps):
            if found.shape != (1, 1, depth_maps.SIZE, depth_maps.SIZE) or not (np.abs(found) <= 1).all():
                raise Problem(f"{self.ws.depth(row, *self.own)} is no depth map in [-1, 1]",
                              "run dptemb2dpt.py --overwrite")
        maps = np.concatenate(maps).astype(np.float32, copy=False)
        return diffusion.depth_channel(torch.from_numpy(maps), self.model.latent_side)

    def _made(self, path):
        if not path.exists():
            raise Problem(f"{path} is missing", "run its stage again, over all the images of --imgidx")
        return path


def _finite(found, rows):
    """Decoded features of the test images `rows`. Raises Problem if one of them is not finite: it would draw noise."""
    chosen = found[rows]
    bad = ~np.isfinite(chosen).all(axis=tuple(range(1, chosen.ndim)))
    if bad.any():
        raise Problem(f"the decoded features of test image {rows[int(np.argmax(bad))]} are not finite",
                      "run ridge.py --overwrite")
    return chosen


def add_arguments(parser, dataset):
    """The flags of diffusion_decoding.py and its twin."""
    cli.add_imgidx(parser, "the test images")
    cli.add_gpu(parser)
    checkpoints.add_revision(parser)
    cli.add_subject(parser)
    cli.add_seed(parser)
    cli.add_voxel_choice(parser)
    cli.add_run(parser, dataset)
    cli.add_occluded_dir(parser)
    parser.add_argument("--roi_init_latent", type=cli.name, nargs="+", default=[ROI_OF["init_latent"]], metavar="ROI",
                        help="ROIs that the latent was decoded from (default: early)")
    parser.add_argument("--roi_c", type=cli.name, nargs="+", default=[ROI_OF["c"]], metavar="ROI",
                        help="ROIs that the conditioning was decoded from (default: ventral)")
    parser.add_argument("--n_samples", type=int, default=N_SAMPLES, help="samples per image (default: 5)")
    parser.add_argument("--batch_size", default="auto", help="samples denoised at once, or auto (default)")
    parser.add_argument("--precision", choices=["auto", "float32", "bfloat16", "float16"], default="auto",
                        help="auto: float16 on a GPU, bfloat16 on a CPU that has it, else float32")
    parser.add_argument("--scheduler", choices=diffusion.SCHEDULERS, default="ddim", help="solver (default: ddim)")
    parser.add_argument("--steps", type=int, default=diffusion.STEPS, help="steps of the whole schedule (default: 50)")
    parser.add_argument("--size", type=float, default=1.0, metavar="SHARE",
                        help="side at which pictures are made, as a share of the checkpoint's own, 512 px for Stable "
                        "Diffusion 1.4 (default: 1); they are saved at 512 px")
    parser.add_argument("--start", choices=diffusion.STARTS, default="picture",
                        help="enlarge the decoded latent as a picture, through the VAE, or as it is (default: picture)")
    parser.add_argument("--guided_below", type=float, default=1.0, metavar="SHARE",
                        help="guide the steps below this share of the noise schedule (default: 1, all)")
    parser.add_argument("--strength", type=float, default=diffusion.STRENGTH,
                        help="share of the schedule that the start image is noised to (default: 0.8)")
    parser.add_argument("--guidance", type=float, default=diffusion.GUIDANCE,
                        help="classifier-free guidance (default: 5)")


def reconstruct(args):
    """Make the missing images of a run. Prints how many there are, and where."""
    check(args)
    ws, device, run = layout.Workspace.of(args), cli.device(args.gpu), cli.run_name(args)
    method = "cvpr" if args.method == "latent" else args.method
    role = "sd_depth" if method == "depth" else "sd"
    dtype = loading.precision(args.precision, device)
    model = diffusion.LatentDiffusion(loading.stable_diffusion(device, dtype, role), args.size)
    inputs = Inputs(args, ws, method, model)
    chosen = cli.image_range(args.imgidx, inputs.count, "test image")
    folder = ws.samples(run)
    check_precision(folder, args, dtype)
    provenance.claim_folder(folder, record(args, method, inputs, role, dtype), args.overwrite)
    save_originals(args, ws, folder, chosen)

    items = [(image, sample) for image in range(inputs.count) for sample in range(args.n_samples)]
    auto = AUTO_BATCH | {"cpu": max(1, CPU_PIXELS // model.size ** 2)}
    size = extraction.batch_size(args, device, auto, lambda: model.probe(extra_channels=int(inputs.depths)),
                                 model.sliced_decode())
    own = range(chosen.start * args.n_samples, chosen.stop * args.n_samples)
    with cli.progress(desc=run, total=len(own), unit="sample") as bar:
        for batch in batches.aligned(own, len(items), size):
            mine = items[batch.own.start:batch.own.stop]
            with writing.working(folder, mine[0][0], mine[-1][0] + 1):
                missing = {item for item in mine if args.overwrite or not layout.sample_image(folder, *item).exists()}
                # A batch with any sample missing is computed whole: a resumed run, and one of any --imgidx, has to give
                # the same bytes as one that made all at once.
                if missing:
                    made = denoise(model, args, inputs, [items[place] for place in batch.filled])
                    for item, image in zip(mine, images.to_pixels(made)[batch.place]):
                        if item in missing:
                            picture_files.save(layout.sample_image(folder, *item), image)
            bar.update(len(mine))
    print(f"{run}: {len(chosen)} images × {args.n_samples} samples in {folder}")


def check(args):
    """Raises Problem for settings that no run can have."""
    if args.conditioning != "zc" and args.method not in ("latent", "cvpr"):
        raise Problem(f"--conditioning {args.conditioning} with --method {args.method}",
                      "the ablation is of the cvpr method")
    if args.n_samples < 1 or args.steps < 1:
        raise Problem("--n_samples and --steps must be at least 1", "give a positive number")
    if not 0 < args.strength <= 1:
        raise Problem(f"--strength {args.strength} is not in (0, 1]", "give a share of the schedule")
    if not 0 < args.size <= 1 or not 0 <= args.guided_below <= 1:
        raise Problem("--size and --guided_below are shares", "give numbers up to 1, --size above 0")
    if not np.isfinite(args.guidance):
        raise Problem(f"--guidance {args.guidance} is no scale", "give a finite number")


def denoise(model, args, inputs, batch):
    """`batch`, a list of (image, sample) → (n, 3, size, size) in [-1, 1]."""
    rows = [image for image, _ in batch]
    shape = (model.latent_channels, model.latent_side, model.latent_side)
    noise = torch.stack([diffusion.sample_noise(args.seed, image, sample, shape) for image, sample in batch])
    return model.img2img(inputs.start(rows), inputs.text(rows), noise, extra=inputs.depth(rows), strength=args.strength,
                         steps=args.steps, guidance=args.guidance, guided_below=args.guided_below,
                         solver=args.scheduler)


def record(args, method, inputs, role, dtype):
    """What makes the images of a run; the number of samples is left out, so that a run can be extended."""
    made = {"method": method} | options(args) | {"precision": loading.dtype_name(dtype)}
    return provenance.record("diffusion_decoding.py", made, inputs.paths, **checkpoints.identity(role))


def check_precision(folder, args, dtype):
    """Raises Problem where a run's images were made in another precision than --precision means here,
    or none knows in which."""
    if args.overwrite or not layout.manifest(folder).exists():
        return
    found = text_files.read_json(layout.manifest(folder)).get("options", {}).get("precision")
    if found == "auto":
        raise Problem(f"{folder} was made with --precision auto by an earlier version, which did not record what that "
                      "came to",
                      "pass --overwrite to make it again, or use another --workdir")
    if found not in (None, loading.dtype_name(dtype)):
        raise Problem(f"{folder} was made in {found}, and --precision {args.precision} is {loading.dtype_name(dtype)} "
                      "here",
                      f"give --precision {found} to go on with it, or --overwrite to make it again")


def options(args):
    """The options that make a run's images what they are, but those at the values of UNSAID."""
    found = {name: getattr(args, name) for name in (
        "dataset", "conditioning", "true_features", "shuffle_trials", "seed", "scheduler", "steps", "strength",
        "guidance")}
    return found | {name: getattr(args, name) for name, unsaid in UNSAID.items() if getattr(args, name) != unsaid}


def save_originals(args, ws, folder, chosen):
    """{i}_org.png, the whole image that the subject saw or that was occluded; for occluded runs {i}_occ.png too."""
    wanted = [(layout.original_image,
               lambda: stimulus_file.Stimuli(stimulus_file.stimuli_path(s3.Root.from_env(), args.workdir)))]
    if args.dataset == "occluded":
        wanted.append((layout.occluded_image, lambda: occluded_stimuli.open_occluded(occluded_stimuli.path_of(args))))
    stims = trials.test_stimuli(ws)
    for path, open_stimuli in wanted:
        missing = [image for image in chosen if not path(folder, image).exists()]
        if missing:
            with open_stimuli() as stimuli:
                for image in missing:
                    with writing.working(folder, image, image + 1):
                        if not path(folder, image).exists():
                            shown = stimuli.read([stims[image]])[0]
                            picture_files.save(path(folder, image), images.resize(shown, images.SAMPLE_SIZE))
