"""Stages at NSD's true shapes, each on a slice, measured: what benchmarks/rehearsal.py scales to a subject.

Every function takes the parsed arguments of a stage's command and the Study, and gives {kind: Measured}. Inputs are
synthetic, the networks' weights random.
"""
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from benchmarks import _shared, slow_link, subjmri
from tests import tiny_nsd
from utils import images, layout
from utils.models import architectures
from utils.nsd import object_keys
from utils.pipeline import costs

DRAW = 0
PART = 1_024           # dims of a ridge that are decoded
SESSION = 750          # trials
ROOT = _shared.ROOT


@dataclass
class Measured:
    """what was measured, the seconds that it took, the seconds of the whole command, and peak MiB, if not of this
    process."""

    what: str
    took: float
    projected: float
    peak: float | None = None


def timed(function):
    """Seconds of the second of two calls."""
    function()
    return timed_once(function)


def timed_once(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def script(*command, **environment):
    """Seconds and peak MiB of one of the root's scripts."""
    wall, _, peak = subjmri.measure([sys.executable, *command], **environment)
    return wall, peak * 1e6 / 2 ** 20


def precision():
    import torch

    from utils.models import loading

    return loading.precision("auto", torch.device("cpu"))


def stable_diffusion(share=1.0):
    from utils.generate import diffusion

    return diffusion.LatentDiffusion(_shared.real(precision()).checkpoint, share)


# data over a home connection


def data(args, study):
    """One whole session by voxel and 250 images by range, through 100 Mbit/s and 40 ms."""
    count = SESSION // 3
    with tempfile.TemporaryDirectory() as temporary:
        folder, workdir = Path(temporary, "nsd"), Path(temporary, "work")
        slow_link.write_world(folder, 1, SESSION, slow_link.FILLED)
        path = folder / object_keys.STIMULI_KEY
        path.parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(path, "w") as file:
            noise = np.random.default_rng(DRAW).integers(0, 256, (425, 425, 3), np.uint8)
            brick = file.create_dataset("imgBrick", (count + 2, 425, 425, 3), np.uint8)
            for row in range(count + 2):
                brick[row] = noise
        with slow_link.slow_link(folder) as (url, _):
            environment = {"NSD_ROOT": f"s3://{tiny_nsd.BUCKET}", "AWS_ENDPOINT_URL_S3": url}
            betas, held = script("make_subjmri.py", "--subject", "subj01", "--workdir", str(workdir), **environment)
            fetched, small = script("img2feat_sd.py", "--subject", "subj01", "--workdir", str(workdir), **environment)
    return {"mri": Measured("1 whole session over the link", betas, betas * study.sessions, held),
            "stimuli": Measured(f"{count} images over the link", fetched, fetched * study.stimuli / count,
                                       small)}


def occlude(args, study):
    """What to hide, or 128 occluded images, by the script."""
    from mini_nsd import scene_rendering, scene_sampling

    count = 128
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "nsd_stimuli.hdf5")
        with h5py.File(path, "w") as file:
            brick = file.create_dataset("imgBrick", (count, 425, 425, 3), np.uint8)
            for row in range(count):
                brick[row] = scene_rendering.render(scene_sampling.sample(DRAW, row % 16)).image
        flags = ["--on_read"] if args.on_read else []
        took, peak = script("generate_occluded_images.py", "--input_path", str(path), "--output_path",
                            str(Path(folder, "occluded.hdf5")), *flags)
    return {"occluded": Measured(
        f"{count:,} images", took, took if args.on_read else took * study.stimuli / count, peak)}


# features


def sd(args, study):
    """Latents and caption embeddings of 2 images with SD 1.4's architecture."""
    model, count = stable_diffusion(), 2
    stimuli, captions = _shared.scene_stimuli(count)
    took = timed(lambda: _shared.extract_features(model, stimuli, captions))
    return {"sd": Measured(f"{count} images", took, took * study.stimuli / count)}


def blip(args, study):
    """BLIP base's embeddings of 4 images."""
    import torch

    captioner = _captioner()
    captioner.network.to(precision())
    pixels = torch.randn(4, 3, captioner.size, captioner.size)
    took = timed(lambda: captioner.embed(pixels))
    return {"blip": Measured("4 images", took, took * study.stimuli / 4)}


def captions(args, study):
    """Captions of 2 images, in float32."""
    import torch

    captioner = _captioner()
    took = timed(lambda: captioner.caption(torch.randn(2, *captioner.shape)))
    return {"captions": Measured("2 captions", took, took * study.test / 2)}


def _captioner():
    from transformers import BertTokenizer, BlipConfig, BlipForConditionalGeneration, BlipImageProcessor

    from utils.generate import captioning

    return captioning.Captioner(BlipForConditionalGeneration(BlipConfig()).eval(), BertTokenizer(),
                                BlipImageProcessor())


def dpt(args, study):
    """DPT large's hidden states of 2 images."""
    import torch

    estimator = _estimator()
    estimator.network.to(precision())
    took = timed(lambda: estimator.hidden_states(torch.randn(2, 3, 384, 384)))
    return {"dpt": Measured("2 images", took, took * study.stimuli / 2)}


def depth(args, study):
    """Depth of 2 images from DPT's hidden states, in float32."""
    import torch

    estimator = _estimator()
    states = [torch.randn(2, *estimator.shape)] * 4
    took = timed(lambda: estimator.depth(states))
    return {"depth": Measured("2 maps", took, took * study.test / 2)}


def _estimator():
    from transformers import DPTConfig, DPTForDepthEstimation, DPTImageProcessor

    from utils.generate import depth_maps

    return depth_maps.DepthEstimator(DPTForDepthEstimation(DPTConfig(
        hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096,
        backbone_out_indices=[5, 11, 17, 23], neck_hidden_sizes=[256, 512, 1024, 1024])).eval(), DPTImageProcessor())


def vgg19(args, study):
    """The Caffe VGG19's layers of 8 images."""
    import torch

    from utils.generate import gan_inversion

    encoder, _, _ = _shared.vgg19_and_generator(torch.device("cpu"))
    pictures = torch.randn(8, 3, encoder.image_size, encoder.image_size)
    took = timed(lambda: gan_inversion.activations(encoder, pictures, gan_inversion.LAYERS, precision()))
    return {"vgg19": Measured("8 images", took, took * study.stimuli / 8)}


def inversion(args, study):
    """Two steps of the inversion of 4 pictures with the relu7 generator."""
    import torch

    from utils.generate import gan_inversion

    encoder, generator, shapes = _shared.vgg19_and_generator(torch.device("cpu"))
    targets = {layer: torch.randn(4, *shape) for layer, shape in shapes.items()}
    encoder, generator, _ = gan_inversion.with_arithmetic(encoder, generator, args.precision, args.convolutions)
    took = timed(lambda: gan_inversion.invert(encoder, generator, targets, torch.rand(4, 4_096), n_iter=2))
    return {"gan": Measured(
        "2 steps of 4 pictures", took, took * study.test * args.n_iter / (4 * 2))}


def matrix(args, study):
    """A subject's matrix of 2,048 stimuli × 59,136 dims in half precision, by its script."""
    from utils.storage import arrays, feature_shards

    count, dims = 2_048, 59_136
    with tempfile.TemporaryDirectory() as folder:
        ws = layout.Workspace(Path(folder), "subj01")
        ids = np.arange(count)
        arrays.write_npy(ws.stims, ids)
        arrays.write_npy(ws.stims_ave, ids)
        arrays.write_npy(ws.stims_ave_test, ids % 10 == 0)
        shards = feature_shards.Shards(layout.features(folder, "c"))
        random = np.random.default_rng(DRAW)
        for start in range(0, count, 256):
            shards.write(ids[start:start + 256], random.standard_normal((256, dims), np.float32).astype(np.float16),
                         {"stimuli": "nsd"})
        took, peak = script("make_subjstim.py", "--featname", "c", "--use_stim", "each", "--subject", "subj01",
                            "--workdir", folder)
    wanted = architectures.dims(args.featname)
    return {"pair": Measured(f"{count} stimuli × {dims:,}", took,
                                         took * study.stimuli * wanted / (count * dims), peak)}


# decoders


def ridge(args, study):
    """Factorise all training rows, and decode a slice of the dims."""
    from utils.ridge import fit_targets, ridge_decoder

    random, target = np.random.default_rng(DRAW), args.target[0]
    voxels, use = study.width(args.roi), fit_targets.use_of(args, target)
    rows = np.arange(study.train_stimuli)
    if use == "each":
        rows = np.concatenate([rows, random.integers(study.train_stimuli, size=study.train_trials - len(rows))])
    signal = random.standard_normal((study.train_stimuli, 64), np.float32)
    mixing = random.standard_normal((64, voxels), np.float32)
    train = np.empty((len(rows), voxels), np.int16 if use == "each" else np.float32)
    for part in np.array_split(np.arange(len(rows)), 16):
        train[part] = 100 * (signal[rows[part]] @ mixing
                             + 8 * random.standard_normal((len(part), voxels), np.float32))
    targets = signal @ random.standard_normal((64, PART), np.float32)
    test = random.standard_normal((study.test, voxels), np.float32)
    out = np.empty((study.test, PART), np.float32)
    alphas = fit_targets.alphas_of(args, target)
    start = time.perf_counter()  # of the factorisation, which comes with the first dims
    decoder = ridge_decoder.Decoder(train, rows, mode=args.mode, n_stimuli=study.train_stimuli)
    decoder.predict_to(targets[:, :64], test, out[:, :64], alphas=alphas)
    first = time.perf_counter() - start
    again = timed_once(lambda: decoder.predict_to(targets, test, out, alphas=alphas))
    dims = sum(map(architectures.dims, args.target))
    return {"ridge": Measured(f"all {len(rows):,} rows × {voxels:,}, {PART:,} of {dims:,} dims", first + again,
                                 first + again * dims / PART)}


# pictures and what judges them


def sampling(args, study):
    """One pass of the UNet for one latent, one for two, and the VAE's work at both ends of one picture."""
    import torch

    model = stable_diffusion(args.size)
    side = model.latent_side
    text = torch.randn(2, *model.text_shape)

    def step(count):
        with torch.inference_mode():
            model.checkpoint.unet(torch.randn(count, 4, side, side).to(model.dtype), 500,
                                  encoder_hidden_states=text[:count].to(model.dtype))

    def ends():
        model.start_latents(torch.randn(1, 6_400), args.start)
        images.to_pixels(model.decode(torch.randn(1, 4, side, side)))
    guided, plain, around = timed(lambda: step(2)), timed(lambda: step(1)), timed(ends)
    with_guidance, without = costs.passes(args)
    return {"images": Measured(
        "a step with and without guidance, start, decoding", guided + plain + around,
        study.test * args.n_samples * (with_guidance * guided + without * plain + around))}


def judge(args, study, samples):
    """Inception v3, AlexNet and CLIP ViT-L/14's vision tower, random weights, on 8 pictures."""
    took, count = _judged(["inception_v3", "alexnet"], clip=True), 8
    pictures = study.test * (samples + 1)
    return {"features": Measured(f"{count} pictures", took, took * pictures / count)}


def evaluate(args, study, samples, runs):
    """The five networks of the table, PixCorr and SSIM on 8 pictures; of all runs."""
    from utils.evaluate import picture_metrics

    count, random = 8, np.random.default_rng(DRAW)
    networks = _judged(["inception_v3", "alexnet", "efficientnet_b1", "resnet50"], clip=True)
    pictures = random.integers(0, 256, (count, 512, 512, 3), np.uint8)

    def pixels():
        for one, other in zip(pictures, pictures[::-1]):
            pair = picture_metrics.prepared(one), picture_metrics.prepared(other)
            picture_metrics.pixel_correlation(*pair)
            picture_metrics.similarity(*pair)
    took = networks + timed(pixels)
    return {"evaluation": Measured(f"{count} pictures", took, took * runs * study.test * (samples + 1) / count)}


def _judged(names, clip):
    import torch
    import torchvision
    from transformers import CLIPVisionConfig, CLIPVisionModel

    nets = [(torchvision.models.get_model(name, **({"init_weights": False} if "inception" in name else {})).eval(),
             224 if name == "resnet50" else 255 if name == "efficientnet_b1" else 299) for name in names]
    tower = CLIPVisionModel(CLIPVisionConfig(hidden_size=1024, intermediate_size=4096, num_hidden_layers=24,
                                             num_attention_heads=16, patch_size=14, image_size=224)).eval()

    @torch.inference_mode()
    def run():
        for net, side in nets:
            net(torch.randn(8, 3, side, side))
        tower(torch.randn(8, 3, 224, 224), output_hidden_states=True)
    return timed(run)


def identify(args, study, samples):
    """All images and samples, 2,048 dims; scaled by dims to the five usual features."""
    from utils.evaluate import identification

    random, dims = np.random.default_rng(DRAW), 2_048
    originals = random.standard_normal((study.test, dims), np.float32)
    made = random.standard_normal((study.test, samples, dims), np.float32)
    took = timed(lambda: identification.summary(identification.correlations(
        range(study.test), originals.__getitem__, made.__getitem__)))
    wanted = architectures.dims("judged")
    return {"identification": Measured("inception's size", took, took * wanted / dims)}


# By kind of script (stages.KIND); those for occluded images do what those for whole ones do.
MEASURES = {
    "mri": data, "stimuli": data, "occluded": occlude, "sd": sd, "blip": blip, "vgg19": vgg19, "dpt": dpt,
    "pair": matrix, "ridge": ridge, "captions": captions, "gan": inversion, "depth": depth, "images": sampling,
    "features": judge, "identification": identify, "evaluation": evaluate,
}
OF_SAMPLES = (judge, identify)
