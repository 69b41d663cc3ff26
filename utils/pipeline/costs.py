"""What a command fetches, writes and holds, and how long it takes: from the study's size and the machine's speed.

`run_pipeline.py --check` prints these before anything runs, and `benchmarks/rehearsal.py` holds them against stages
that it measures. Operations of networks are counted (utils/models/architectures.py) and divided by the rate of one UNet
step; what is plain code was timed once, where machine.REFERENCE_PROCESSOR was, and goes by the processor's speed.
"""
from dataclasses import dataclass

from utils import cli
from utils.evaluate import papers_table
from utils.generate import diffusion, gan_inversion
from utils.models import architectures, checkpoints
from utils.nsd import object_keys
from utils.pipeline import stages
from utils.ridge import cross_validation, fit_targets

LIBRARIES = 0.45e9    # bytes that torch and the others take, loaded
CAPTIONS = 5          # that an image of COCO has, about
FEATURE_AREA = diffusion.FEATURE_SHARE ** 2
PICTURE = 0.4e6       # bytes of a PNG of 512 px
SAVED, LOADED = 0.06, 0.012  # s that such a PNG takes
# Speed of each kind of network, as a multiple of the UNet's step in operations a second.
SPEED = {"unet": 1.0, "encode": 1.0, "decode": 1.0, "text": 0.9, "blip": 0.9, "caption": 0.2, "dpt": 1.0, "depth": 1.0,
         "vgg19": 0.8, "generator": 0.6, "inception": 0.5, "alexnet": 0.4, "clip": 0.9, "efficientnet": 0.15,
         "swav": 0.4}
# Bytes that one item holds on its way through a network at most, in float32, beside the weights.
HELD = {"sampling": 1.1e9, "encode at feature size": 0.9e9}
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}  # of a number
JUDGES = ("inception", "alexnet", "clip")  # networks of the evaluation features, always in float32
# Of a ridge: operations of a factorisation in units of side³, bases that a dim's losses need (see ridge_decoder) for
# many alphas and for three, matrices in double precision that are held.
FACTOR, BASES, FEW_BASES, GRAMS = 9.0, 8.0, 4.0, 7.0
EVALUATED = 0.12      # s of a picture's PixCorr and SSIM


@dataclass(frozen=True)
class Cost:
    """Bytes that come over the network, that stay on the disk, that are held in memory, and on a GPU; seconds."""

    network: float = 0
    disk: float = 0
    memory: float = LIBRARIES
    gpu: float = 0
    seconds: float = 0


class Costs:
    """The costs of commands for a Study on a Machine, over a Link to NSD's files.

    local: NSD's files are on this disk. plan: [(command, its parsed arguments)] of all steps, from which follows what
    the pictures of a run and the stored features are.
    """

    def __init__(self, study, machine, link, local, plan):
        self.study, self.machine, self.link, self.local = study, machine, link, local
        self.sampling = {cli.run_name(args): args for command, args in plan if stages.KIND[command[0]] == "images"}
        self.sd_bytes = max((BYTES[args.store] for command, args in plan if stages.KIND[command[0]] == "sd"), default=4)

    def of(self, command, args):
        """The Cost of a command, a list of strings, with its parsed arguments."""
        return globals()[f"_{stages.KIND[command[0]]}"](self, args)

    def pictures(self, run):
        """Originals and samples of a run of the plan."""
        args = self.sampling.get(run)
        return 0 if args is None else _count(self, args) * (1 + args.n_samples)

    # parts of costs

    def networks(self, **counted):
        """Seconds of so many operations by kind: {name in architectures.OPERATIONS, spaces as _: items}."""
        total = 0
        for name, items in counted.items():
            name = name.replace("_", " ")
            speed = SPEED[name.removesuffix(" at feature size")] * self.machine.network
            total += items * architectures.of(architectures.OPERATIONS, name) / speed
        return total

    def plain(self, seconds):
        return seconds * self.machine.plain

    def weights(self, *names, dtype=None):
        """Bytes of some networks' weights, in the precision of this machine unless dtype names another."""
        return BYTES[dtype or self.machine.dtype] * sum(architectures.of(architectures.WEIGHTS, name) for name in names)

    def small(self):
        """How much less an item of the small networks holds."""
        return 1 / 16 if checkpoints.simulated() else 1


def _mri(costs, args):
    study = costs.study
    voxels = sum(study.voxels.values())
    betas = study.betas
    averaged = 4 * voxels * study.stimuli
    workers = min(args.workers, costs.machine.cores)
    seconds = study.sessions * (betas.seconds + costs.plain(2.2e-4 * voxels)) / workers ** 0.5
    return Cost(0 if costs.local else study.sessions * betas.size, 2 * voxels * study.trials + averaged,
                0.15e9 + 0.3e9 * args.workers, seconds=seconds + costs.plain(2 * voxels * study.trials / 400e6))


def _stimuli(costs, args):
    if costs.local:
        return Cost(memory=0.1e9)
    count = costs.study.stimuli if args.subject else object_keys.STIMULI
    count = costs.study.test if args.images == "test" else count
    size = count * costs.study.stimulus
    return Cost(size, size, 0.3e9, seconds=max(costs.link.seconds(count, size, 16), size / costs.machine.write))


def _occluded(costs, args):
    count = costs.study.stimuli
    if args.on_read:
        return Cost(disk=8 * count, memory=0.1e9, seconds=costs.plain(1))
    size = 0.85 * count * costs.study.stimulus
    return Cost(disk=size, memory=0.2e9, seconds=costs.plain(0.045 * count) + 2 * size / costs.machine.write)


def _extracted(costs, count, dims, each, names, **counted):
    """Features of `count` stimuli: dims numbers of `each` bytes by the named networks."""
    size = count * dims * each
    held = costs.weights(*names) + costs.small() * HELD["encode at feature size"]
    return Cost(disk=size, memory=LIBRARIES + held, gpu=held,
                seconds=costs.networks(**counted) + costs.plain(0.004 * count) + size / costs.machine.write)


def _sd(costs, args):
    count = costs.study.stimuli
    return _extracted(costs, count, architectures.dims("init_latent") + architectures.dims("c"), BYTES[args.store],
                      ("vae", "text"), encode_at_feature_size=count, text=count * CAPTIONS)


def _blip(costs, args):
    count = costs.study.stimuli
    said = 0 if args.skip_captions else count
    return _extracted(costs, count, architectures.dims("blip"), BYTES[args.store], ("blip",), blip=count, caption=said)


def _vgg19(costs, args):
    count, layers = costs.study.stimuli, gan_inversion.layer_names(args.layers)
    return _extracted(costs, count, sum(architectures.dims(layer) for layer in layers), 2, ("vgg19",), vgg19=count)


def _dpt(costs, args):
    count = costs.study.stimuli
    return _extracted(costs, count, 4 * architectures.dims("dpt"), BYTES[args.store], ("dpt",), dpt=count)


def _matrix(costs, names, each):
    size = each * costs.study.stimuli * sum(architectures.dims(name) for name in names)
    return Cost(disk=size, memory=0.25e9, seconds=costs.plain(1 + size / 60e6) + size / costs.machine.write)


def _pair(costs, args):
    wide = args.featname.removesuffix("_occluded") in ("init_latent", "c")
    return _matrix(costs, [args.featname], costs.sd_bytes if wide else 2)


def _pair_vgg19(costs, args):
    return _matrix(costs, gan_inversion.layers_to_gather(args), 2)


def _ridge(costs, args):
    """The factorisation and the dims, by the products that docs/algorithms.md#ridge counts."""
    study, machine = costs.study, costs.machine
    voxels, many = study.width(args.roi), len(fit_targets.alphas_of(args, args.target[0])) > 3
    seconds = memory = disk = 0
    for use in ("each", "ave"):
        dims = sum(architectures.dims(target) for target in args.target if fit_targets.use_of(args, target) == use)
        if not dims:
            continue
        rows = study.train_trials if use == "each" else study.train_stimuli
        side = min(rows, voxels)
        gram = rows * voxels * side / machine.float64
        folds = (cross_validation.N_FOLDS + 1) * FACTOR * side ** 3 / machine.float64
        each = (BASES if many else FEW_BASES) * 2 * study.train_stimuli * side / machine.float32
        seconds += gram + folds + dims * each
        memory = max(memory, (2 if use == "each" else 4) * rows * voxels + GRAMS * 8 * side ** 2 + 0.6e9)
        disk += 4 * study.test * dims
    return Cost(disk=disk, memory=LIBRARIES + memory, seconds=seconds + costs.plain(3 * len(args.target)))


def _captions(costs, args):
    held = costs.weights("blip", dtype="float32") + costs.small() * 0.5e9
    return Cost(memory=LIBRARIES + held, gpu=held, seconds=costs.networks(caption=costs.study.test))


def _mat(costs, args):
    layers = gan_inversion.layer_names(args.layers)
    size = 4 * costs.study.test * sum(architectures.dims(layer) for layer in layers)
    return Cost(disk=size, memory=0.6e9, seconds=size / costs.machine.write + costs.plain(size / 150e6))


def _gan(costs, args):
    count = _count(costs, args)
    held = costs.weights("vgg19", "generator", dtype="float32") + costs.small() * 2.4e9
    each = 3 * args.n_iter  # there, back through the input, and the products of the way back
    return Cost(disk=count * 0.15e6, memory=LIBRARIES + held, gpu=held,
                seconds=costs.networks(vgg19=count * each, generator=count * each))


def _depth(costs, args):
    count = _count(costs, args)
    held = costs.weights("dpt", dtype="float32") + costs.small() * 1.5e9
    return Cost(disk=count * 0.1e6, memory=LIBRARIES + held, gpu=held, seconds=costs.networks(depth=count))


def _count(costs, args):
    """Test images that a command with --imgidx takes."""
    chosen = args.imgidx or [0, costs.study.test]
    start, stop = (chosen[0], chosen[0] + 1) if len(chosen) == 1 else chosen
    return max(0, min(stop, costs.study.test) - start)


def passes(args):
    """(steps with guidance, steps without) of a sample."""
    steps = max(1, min(args.steps, int(args.steps * args.strength)))
    # Solvers space their steps evenly over the schedule, nearly: the first of all lies at its end.
    guided = sum((step + 1) / args.steps <= args.guided_below + 1e-9 for step in range(steps))
    return (0, steps) if args.guidance == 1 else (guided, steps - guided)


def _images(costs, args):
    count = _count(costs, args)
    samples = count * args.n_samples
    pictures = samples + (2 if args.dataset == "occluded" else 1) * count
    guided, plain = passes(args)
    # Between the two sizes at which operations were counted, by area.
    area = (args.size ** 2 - FEATURE_AREA) / (1 - FEATURE_AREA)
    counted = {}
    for name, items in (("unet", 2 * guided + plain), ("decode", 1), ("encode", args.start == "picture")):
        counted[name], counted[f"{name}_at_feature_size"] = area * items * samples, (1 - area) * items * samples
    if args.start == "picture":
        counted["decode_at_feature_size"] += samples
    held = costs.weights("unet", "vae", "text") + costs.small() * args.size ** 2 * HELD["sampling"]
    return Cost(disk=PICTURE * pictures, memory=LIBRARIES + held, gpu=held,
                seconds=costs.networks(**counted) + costs.plain(SAVED * pictures))


def _features(costs, args):
    pictures = costs.pictures(cli.run_name(args))
    held = costs.weights(*JUDGES, dtype="float32") + costs.small() * 0.8e9
    return Cost(disk=4 * pictures * architectures.dims("judged"), memory=LIBRARIES + held, gpu=held,
                seconds=costs.networks(**dict.fromkeys(JUDGES, pictures)) + costs.plain((LOADED + 0.02) * pictures))


def _identification(costs, args):
    values = costs.pictures(cli.run_name(args)) * architectures.dims("judged")
    return Cost(disk=1e6, memory=0.4e9, seconds=costs.plain(2 + values / 6e6))


def _evaluation(costs, args):
    pictures = sum(map(costs.pictures, costs.sampling))
    networks = costs.networks(**dict.fromkeys(papers_table.ROLES, pictures))
    held = costs.weights(*papers_table.ROLES, dtype="float32") + costs.small() * 1.5e9
    return Cost(disk=1e3 * pictures, memory=LIBRARIES + held, gpu=held,
                seconds=networks + costs.plain(5 + EVALUATED * pictures))


def _figures(costs, args):
    return Cost(disk=20e6, memory=0.5e9, seconds=costs.plain(20))


def _report(costs, args):
    return Cost(disk=15e6, memory=0.6e9, seconds=costs.plain(10 + 0.03 * sum(map(costs.pictures, costs.sampling))))


def _completion(costs, args):
    views = args.inpaint * 2 + args.reconstruct
    steps = 20 * args.inpaint + args.reconstruct * (20 + 2 * args.steps)
    held = costs.weights("unet", "vae", "text") + costs.small() * HELD["sampling"]
    return Cost(disk=50e6, memory=LIBRARIES + held + 1e9, gpu=held,
                seconds=costs.networks(unet=2 * steps, decode=views, encode=views) + costs.plain(60))
