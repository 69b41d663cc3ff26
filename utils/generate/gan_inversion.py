"""VGG19's features, and pictures from them by inversion with a generator (docs/algorithms.md#vgg19-and-its-inversion).

The numbers are those of Takagi & Nishimoto (arXiv 2306.11536), recon_icnn_image_vgg19_dgn_relu7gen_gd.py, who took
them from Kamitani Lab's cookbook (Shen et al., PLOS Computational Biology 2019). `invert` does for a batch of pictures
at once what `bdpy.recon.torch.icnn.reconstruct` does for one.
"""
import copy
import dataclasses
import io
import math
from types import SimpleNamespace

import numpy as np
from PIL import Image

from utils import batches, cli, images, layout, lazy, memory
from utils.errors import Problem
from utils.features import extraction
from utils.models import checkpoints, loading
from utils.nsd import mat5, trials
from utils.ridge import correlation, decoded_features
from utils.storage import provenance, writing

torch = lazy.module("torch")
scipy = lazy.module("scipy")
caffe_nets, winograd = map(lazy.module, ("utils.models.caffe_nets", "utils.models.winograd"))

LAYERS = ("conv1_2", "conv2_2", "conv3_4", "conv4_4", "conv5_4", "fc6", "fc7", "fc8")  # that are inverted
N_ITER = 200
LEARNING_RATE = (2.0, 1e-10)  # at the first iteration, and where it goes, linearly
MOMENTUM, DECAY = 0.9, 0.01
CLIPPED_PERCENT = 4  # of the levels, half at either end, before a picture is stretched to 0–255
SCALE_IMAGES = 1000  # training images, evenly spaced, from which the layers' spread is taken
DRAW_GENERATOR_INPUT = 3  # keeps the streams of random numbers of different draws of one item apart
AUTO_BATCH = {"cuda": 32, "mps": 8, "cpu": 8}  # pictures inverted at once
LARGE_BATCH = AUTO_BATCH | {"cpu": 4}  # of VGG19's own size, whose layers are then better in the processor's cache
EXTRACT_BATCH = {"cuda": 64, "mps": 16, "cpu": 32}


# Extraction


def layer_names(chosen):
    """What --layers or --layer names: "all" is every layer of VGG19. Raises Problem for an unknown one."""
    unknown = set(chosen) - set(layout.VGG19_LAYERS) - {"all"}
    if unknown:
        raise Problem(f"VGG19 has no layer {' '.join(sorted(unknown))}",
                      f"choose from {' '.join(layout.VGG19_LAYERS)}, or all")
    return [layer for layer in layout.VGG19_LAYERS if layer in chosen or "all" in chosen]


def layers_to_gather(args):
    """What make_subjstim_vgg19.py --layer names; "all" is LAYERS and every other layer that has been extracted."""
    named = layer_names(args.layer)
    if "all" not in args.layer:
        return named
    return [layer for layer in named if layer in LAYERS
            or layout.features(args.workdir, layout.of_dataset(layer, args.dataset)).is_dir()]


def extract(args):
    """Extract the layers of args.layers in one forward pass, into shards."""
    device, layers = cli.device(args.gpu), layer_names(args.layers)
    dtype = loading.precision(args.precision, device)
    encoder = loading.vgg19(device)
    stimuli, attributes = extraction.open_stimuli(args)
    extraction.extract_all(
        args, stimuli, attributes | {"stored": args.store}, "vgg19",
        [layout.of_dataset(layer, args.dataset) for layer in layers], dtype,
        lambda inputs, _: [extraction.stored(found, args.store)
                           for found in activations(encoder, inputs, layers, dtype)],
        extraction.batch_size(args, device, EXTRACT_BATCH,
                              lambda: activations(encoder, encoder.blank(), layers, dtype)),
        prepare=lambda ids: encoder.prepare(stimuli.read(ids)))


@lazy.inference_mode
def activations(encoder, inputs, layers, dtype=None):
    """Prepared pictures (n, 3, s, s) → [(n, …) tensor of each layer]; dtype: of the products (default: float32)."""
    with torch.autocast(encoder.device.type, dtype, enabled=dtype not in (None, torch.float32)):
        return list(encoder.activations(inputs, layers).values())


class Streamed:
    """A layer's features of any stimuli, computed anew at each pass and never stored (ridge.py --stream).

    It takes the place of store.SubjectFeatures in `decoding`. dims: of one stimulus. attributes: what makes them.
    """

    path = None  # there is no file

    def __init__(self, args, target, device):
        layer = target.removesuffix("_occluded")
        if layer not in layout.VGG19_LAYERS:
            raise Problem(f"--stream with --target {target}", "only VGG19's layers are streamed; leave --stream out")
        dataset = "nsd" if layer == target else "occluded"
        self.layer, self.encoder = layer, loading.vgg19(device)
        self.dtype = loading.precision("auto", device)
        self.batch = memory.batch(device, EXTRACT_BATCH,
                                  lambda: activations(self.encoder, self.encoder.blank(), [layer], self.dtype))
        self.stimuli, attributes = extraction.open_stimuli(
            SimpleNamespace(
                dataset=dataset, workdir=args.workdir, stimuli_path=None, occluded_path=None, occluded_dir=None))
        self.dims = math.prod(self.encoder.shapes([layer])[layer])
        self.attributes = attributes | checkpoints.identity("vgg19") | {
            "feature": target, "dtype": loading.dtype_name(self.dtype), "stored": "streamed"}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stimuli.close()

    def replay(self, ids):
        """One pass over stimuli: yields (rows (n,) of `ids`, features (n, dims) float32), a batch at a time."""
        blocks = [range(start, min(start + self.batch, len(ids))) for start in range(0, len(ids), self.batch)]
        for rows, inputs in images.prefetch(lambda rows: self.encoder.prepare(self.stimuli.read(ids[rows])), blocks):
            found, = activations(self.encoder, inputs, [self.layer], self.dtype)
            yield np.array(rows), extraction.as_numpy(found).reshape(len(rows), -1)

    def correlations(self, predicted, ids):
        """The `correlation.Correlations` of predictions (len(ids), dims) with the true features. One pass."""
        found = correlation.Correlations(len(ids), self.dims)
        for rows, true in self.replay(ids):
            found.add(rows, slice(None), predicted[rows], true)
        return found


# Inversion


def initial_features(seed, numbers, units):
    """Standard normal generator inputs (n, units) float32, each from (seed, image number) alone."""
    return torch.from_numpy(np.stack([
        np.random.default_rng((seed, number, DRAW_GENERATOR_INPUT)).standard_normal(units, dtype=np.float32)
        for number in numbers]))


def spread(found):
    """(n, C, H, W) or (n, units) features → (n,): SD over places (ddof 1), averaged over channels; or over units."""
    return found.flatten(2).std(2).mean(1) if found.dim() > 2 else found.std(1)


def shifted_and_scaled(found, scale):
    """Decoded features of a layer with the spread of true ones, picture by picture: (f - mean) / spread × scale + mean.

    Decoded features vary too little, as all regularised predictions do. found: (n, C, H, W) or (n, units). scale: the
    mean spread of true features, as `bdpy.feature.normalize_feature` with shift "self", channel axis 0 and ddof 1.
    """
    shape = (-1, *[1] * (found.dim() - 1))
    mean = found.flatten(1).mean(1).view(shape)
    return (found - mean) / spread(found).view(shape) * scale + mean


def invert(encoder, generator, targets, start, n_iter=N_ITER, progress=None, learning_rate=LEARNING_RATE[0]):
    """Search for generator inputs whose pictures have the target features: gradient descent, a batch at once.

    encoder, generator: caffe_nets. targets: {layer: (n, C, H, W) or (n, units) float32}. start: (n, units) float32.
    A picture's loss is the squared error of each layer over the squared norm of its target; its gradient is divided by
    its mean absolute value, so pictures do not influence each other. Returns the last pictures, (n, 3, s, s) float32 in
    the encoder's space, generated before the last step as bdpy does. progress: called after each iteration.
    learning_rate: at the first iteration.
    """
    device, layers, dtype = encoder.device, list(targets), next(generator.network.parameters()).dtype
    targets = {layer: target.to(device, torch.float32) for layer, target in targets.items()}
    weights = layer_weights(targets)
    z = start.to(device, torch.float32, copy=True)
    momentum = torch.zeros_like(z)
    for iteration in range(n_iter):
        rate = learning_rate + iteration * (LEARNING_RATE[1] - learning_rate) / n_iter
        z.requires_grad_(True)
        with torch.enable_grad():
            made = central(generator.network(z.to(dtype)), encoder.image_size)
            found = encoder.activations(made, layers)
            gradient, = torch.autograd.grad(list(found.values()), z, [
                slope(found[layer].detach(), targets[layer], weights[layer]) for layer in layers])
        size = gradient.abs().mean(1, keepdim=True)
        gradient = gradient / torch.where(size > 0, size, 1)
        momentum = MOMENTUM * momentum + gradient
        z = torch.minimum(((1 - DECAY) * (z.detach() - rate * momentum)).clamp_min(0), generator.bound)
        if progress:
            progress()
    return made.detach().float()


def slope(found, target, weight):
    """The gradient of weight (n,) × the squared error of a layer, (n, …) in found's dtype: 2 weight (found - target).

    Written out, since to square the largest layers and to go back takes four passes over them where this takes two.
    """
    return ((found - target) * (2 * weight).view(-1, *[1] * (found.dim() - 1))).to(found.dtype)


def with_arithmetic(encoder, generator, precision, convolutions):
    """(encoder, generator, what goes on record) that `invert` computes with, as --precision and --convolutions ask.

    On record is only what is not float32 and direct. Raises Problem for Winograd convolutions that are not to be had.
    """
    dtype = torch.float32
    if precision == "bfloat16" or (precision == "auto" and encoder.device.type == "cpu" and loading.cpu_has_bfloat16()):
        dtype = torch.bfloat16
    served = dtype == torch.float32 and convolutions != "direct" and winograd.serves(encoder, LAYERS)
    if convolutions == "winograd" and not served:
        raise Problem("--convolutions winograd: they are computed on a CPU in float32, where PyTorch has NNPACK, for "
                      f"layers of {winograd.CHANNELS} channels and {winograd.SIDE} px, and here there are none",
                      "pass --convolutions auto")
    if served:
        return dataclasses.replace(encoder, run=winograd.run), generator, {"convolutions": "winograd"}
    if dtype == torch.float32:
        return encoder, generator, {}
    coarse = [dataclasses.replace(each, network=copy.deepcopy(each.network).to(dtype)) for each in (encoder, generator)]
    return *coarse, {"precision": loading.dtype_name(dtype)}


def layer_weights(targets):
    """{layer: (n,)}: one over the target's squared norm, as a share of the sum over layers."""
    inverse = {layer: 1 / target.flatten(1).square().sum(1) for layer, target in targets.items()}
    total = sum(inverse.values())
    return {layer: each / total for layer, each in inverse.items()}


def central(pictures, size):
    """The central size×size px of (n, 3, h, w): the generator's pictures are larger than VGG19's."""
    top, left = ((side - size) // 2 for side in pictures.shape[2:])
    return pictures[:, :, top:top + size, left:left + size]


def to_uint8(pixels, levels):
    """(n, h, w, 3) float RGB → uint8.

    levels: "stretch" maps each picture's range, without its extremes, to 0–255, as the cookbook does for the published
    generator, which was not trained on pixels alone; "clip" keeps 0–255 as they are, for one that was.
    """
    if levels == "clip":
        return np.rint(np.clip(pixels, 0, 255)).astype(np.uint8)
    flat = pixels.reshape(len(pixels), -1)
    low, high = np.percentile(flat, [CLIPPED_PERCENT / 2, 100 - CLIPPED_PERCENT / 2], axis=1)
    low, high = low[:, None], high[:, None]
    stretched = 255 * (np.clip(flat, low, high) - low) / np.maximum(high - low, 1e-6)
    return stretched.astype(np.uint8).reshape(pixels.shape)


# From decoded features to pictures


def write_decoded(args):
    """Write the decoded features of args.layers, a .mat file per layer and test image, for bdpy and `reconstruct`."""
    ws, own = layout.Workspace.of(args), (args.dataset, decoded_features.suffix(args))
    targets = {layer: layout.of_dataset(layer, args.dataset) for layer in layer_names(args.layers)}
    missing = [target for target in targets.values() if not decoded_features.scores(args, ws, target).exists()]
    if missing and not args.true_features:
        raise Problem(f"{ws.decoded} has no decoded {' '.join(missing)}",
                      f"run {decoded_features.command(args, ws, missing)}")
    shapes = loading.vgg19(torch.device("cpu")).shapes(targets)
    for layer, target in targets.items():
        found, path = decoded_features.read(args, ws, target, shapes[layer], checkpoints.identity("vgg19"))
        wanted = provenance.record("make_vgg19fromdecode.py", decoded_features.options(args), [path],
                                   **checkpoints.identity("vgg19"))
        provenance.claim_folder(ws.gan_features(layer, 0, *own).parent, wanted, args.overwrite)
        with writing.working(ws.gan_features(layer, 0, *own).parent, 0, len(found)):
            for index in cli.progress(range(len(found)), desc=layer, unit="img"):
                path = ws.gan_features(layer, index, *own)
                if args.overwrite or not path.exists():
                    write_mat(path, {"feat": np.asarray(found[index])[None]})
    print(f"{len(found)} test images × {len(targets)} layers in {path.parents[3]}")


def write_mat(path, found, title="decoded features of VGG19"):
    """{key: array} → a MATLAB file; with `feat`, (1, C, H, W) or (1, units), bdpy.dataform.DecodedFeatures reads it."""
    whole, title = io.BytesIO(), f"MATLAB 5.0 MAT-file: {title}".encode().ljust(MAT_TITLE)
    scipy.io.savemat(whole, found)
    whole.getbuffer()[:MAT_TITLE] = title  # scipy's holds the time, and equal work must give equal bytes
    with writing.atomic(path) as temporary:
        temporary.write_bytes(whole.getbuffer())


def read_mat(path, shape, made_by):
    """`feat` of a .mat file, (*shape) float32. Raises Problem if it is missing, not whole, or of another model."""
    try:
        found = mat5.read(path.read_bytes(), ("feat",))["feat"]
        if not np.isfinite(found).all():
            raise ValueError("NaN or infinite features")
    except FileNotFoundError as error:
        raise Problem(f"{path} is missing", f"run {made_by}") from error
    except (KeyError, ValueError) as error:
        raise Problem(f"{path} is not a whole .mat file with feat ({error})", f"delete it and run {made_by}") from error
    if found.shape != (1, *shape):
        raise Problem(f"{path} holds feat {found.shape} where VGG19 has {(1, *shape)}", f"run {made_by} --overwrite")
    return found[0].astype(np.float32)


def reconstruct(args):
    """Invert the decoded features of the test images, a batch at a time, and write a TIFF of each."""
    ws, own = layout.Workspace.of(args), (args.dataset, decoded_features.suffix(args))
    device = cli.device(args.gpu)
    encoder, generator = loading.vgg19(device), loading.generator(device)
    levels = generator.levels if args.levels == "auto" else args.levels
    shapes = encoder.shapes(LAYERS)
    *inverting, arithmetic = with_arithmetic(encoder, generator, args.precision, args.convolutions)
    folders = [ws.gan_features(layer, 0, *own).parent for layer in LAYERS]
    made_by = command(args)
    missing = [layer for layer, folder in zip(LAYERS, folders) if not layout.manifest(folder).exists()]
    if missing:
        raise Problem(f"there are no decoded features of {' '.join(missing)}", f"run {made_by}")
    wanted = provenance.record(
        "recon_icnn_image_vgg19_dgn_relu7gen_gd.py", recorded(args) | {"levels": levels} | arithmetic,
        features={layer: provenance.digest(layout.manifest(folder)) for layer, folder in zip(LAYERS, folders)},
        **checkpoints.identity("vgg19"), generator=checkpoints.identity("generator"), **loading.arithmetic(device))
    provenance.claim_folder(ws.gan_image(0, *own).parent, wanted, args.overwrite)
    count = len(trials.test_stimuli(ws))
    chosen = cli.image_range(args.imgidx, count, "test image")
    auto = LARGE_BATCH if encoder.image_size >= caffe_nets.IMAGENET_SIZE else AUTO_BATCH
    size = extraction.batch_size(args, device, auto, lambda: invert(
        *inverting, {layer: torch.ones(1, *shapes[layer]) for layer in LAYERS}, generator.bound[None], 1))
    # A batch with any picture missing is computed whole: a resumed run, and one of any --imgidx, gives what one that
    # made all at once would.

    def lacking(batch):
        return args.overwrite or not all(ws.gan_image(i, *own).exists() for i in batch.own)

    todo = [batch for batch in batches.aligned(chosen, count, size) if lacking(batch)]
    scale = None if args.true_features or not todo else feature_scale(args, ws, encoder)
    steps = args.n_iter * sum(len(batch.filled) for batch in todo)
    with cli.progress(desc=ws.gan_image(0, *own).parents[3].name, total=steps, unit="step") as bar:
        for batch in todo:
            with writing.working(ws.gan_image(0, *own).parent, batch.own.start, batch.own.stop):
                if not lacking(batch):
                    continue
                targets = {layer: torch.from_numpy(np.stack([
                    read_mat(ws.gan_features(layer, i, *own), shapes[layer], made_by) for i in batch.filled]))
                    for layer in LAYERS}
                if scale:
                    targets = {layer: shifted_and_scaled(target, scale[layer]) for layer, target in targets.items()}
                start = initial_features(args.seed, batch.filled, len(generator.bound))
                made = invert(*inverting, targets, start, args.n_iter, lambda: bar.update(len(batch.filled)),
                              args.learning_rate)
                pixels = encoder.pixels(made)[batch.place]
                if not np.isfinite(pixels).all():
                    raise Problem(f"the inversion of test images {batch.own[0]}..{batch.own[-1]} gave NaN or infinite "
                                  "pictures",
                                  f"check their decoded features: run {made_by} --overwrite")
                for index, exact, picture in zip(batch.own, pixels, to_uint8(pixels, levels)):
                    # The TIFF says that a picture is done: it comes last.
                    if args.overwrite or not ws.gan_image(index, *own).exists():
                        write_mat(ws.gan_pixels(index, *own), {"recon_image": exact, "recon_image_norm": picture},
                                  "picture made from decoded features")
                        save_tiff(ws.gan_image(index, *own), picture)
    print(f"{len(chosen)} GAN images in {ws.gan_image(0, *own).parent}")


MAT_TITLE = 116  # bytes of text that a MAT file begins with
OPTIONS = ("n_iter", "seed", "dataset", "true_features", "shuffle_trials")


def recorded(args):
    """The options that an inversion's record names whatever the models; the published rate is not among them."""
    found = {name: getattr(args, name) for name in OPTIONS}
    return found if args.learning_rate == LEARNING_RATE[0] else found | {"learning_rate": args.learning_rate}


def command(args):
    """The command that writes what `reconstruct` reads."""
    return " ".join(["make_vgg19fromdecode.py --subject", args.subject,
                     *(["--dataset occluded"] if args.dataset == "occluded" else []),
                     *(["--true_features"] if args.true_features else []),
                     *([f"--shuffle_trials {args.shuffle_trials}"] if args.shuffle_trials is not None else [])])


def feature_scale(args, ws, encoder):
    """{layer: mean spread of its true features over training images}; test images never enter it.

    It takes the place of the cookbook's SD over 10,000 ImageNet images, and is computed from pictures, since the
    training features of the largest layers may not be stored (ridge.py --stream).
    """
    stimuli, _ = extraction.open_stimuli(args)
    train = trials.load_design(ws).split("tr").stimuli
    ids = train[np.unique(np.linspace(0, len(train) - 1, min(SCALE_IMAGES, len(train))).astype(int))]
    size = memory.batch(encoder.device, EXTRACT_BATCH, lambda: activations(encoder, encoder.blank(), LAYERS))
    blocks = [ids[start:start + size] for start in range(0, len(ids), size)]
    total = torch.zeros(len(LAYERS), dtype=torch.float64)
    with cli.progress(desc="spread of true features", total=len(ids), unit="img") as bar:
        for block, inputs in images.prefetch(lambda ids: encoder.prepare(stimuli.read(ids)), blocks):
            total += torch.stack([spread(found).sum() for found in activations(encoder, inputs, LAYERS)]).cpu()
            bar.update(len(block))
    return dict(zip(LAYERS, (total / len(ids)).tolist()))


def save_tiff(path, picture):
    """(h, w, 3) uint8 RGB → TIFF."""
    whole = io.BytesIO()  # Pillow writes a TIFF to a real file past Python, and does not notice a full disk
    Image.fromarray(picture).save(whole, format="TIFF")
    with writing.atomic(path) as temporary:
        temporary.write_bytes(whole.getbuffer())
