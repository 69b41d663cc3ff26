"""The stages at NSD's true shapes on this machine: time, peak memory, disk, projected to one subject.

    python benchmarks/rehearsal.py                      # 20 minutes; writes SD 1.4's architecture to .bench (2 GB)
    python benchmarks/rehearsal.py --methods cvpr       # 7 minutes

Inputs are synthetic and the networks' weights random; sizes are subj01's. Each stage runs on a slice, in a process of
its own, and is scaled; what is measured and what it is scaled to are printed. No GPU is used. What one would take is
NOT measured: the last column divides the networks' floating-point operations, counted here, by a rate that one
assumes (--gpu_tflops). Stages of every method (sampling, its features, identification) are counted once for each.
"""
import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from utils import layout  # noqa: E402

# Of subj01, 37 sessions of training.
TRIALS, TRAIN_TRIALS, TRAIN_STIMULI, STIMULI, TEST = 30_000, 24_980, 8_859, 9_841, 982
EARLY, VENTRAL, LATENT, CONDITIONING = 5_917, 7_604, 6_400, 59_136
AVERAGED = 26_688                                      # voxels of decoded.ROIS
BLIP, DPT = 226 * 768, 4 * 577 * 1_024
VGG19 = {"conv1_2": (64, 224, 224), "conv2_2": (128, 112, 112), "conv3_4": (256, 56, 56), "conv4_4": (512, 28, 28),
         "conv5_4": (512, 14, 14), "fc6": (4_096,), "fc7": (4_096,), "fc8": (1_000,)}
VGG19_DIMS = sum(int(np.prod(shape)) for shape in VGG19.values())
EVALUATED = 2_048 + 192 * 17 * 17 + 256 * 8 * 8 + 4_096 + 768  # dims of the usual evaluation features
SAMPLES, STEPS, GUIDED = 5, 40, 2
EVERY = "every"                                        # method
DRAW = 0


def make_subjmri(args):
    """One session of 60 volumes, from a local folder."""
    from benchmarks.subjmri import ROIS, write_world

    volumes = 60
    with tempfile.TemporaryDirectory() as folder:
        world = Path(folder) / "nsd"
        world.mkdir()
        write_world(world, 1, volumes)
        seconds, peak = script("make_subjmri.py", "--subject", "subj01", "--workdir", folder, NSD_ROOT=str(world))
    return [row("cvpr", "make_subjmri", f"{volumes} volumes", seconds, seconds * TRIALS / volumes,
                TRIALS * sum(ROIS.values()) * 2, peak=peak)]


def img2feat(args):
    """Latents and caption embeddings of 4 images with SD 1.4's architecture in bfloat16."""
    from benchmarks._shared import extract_features, scene_stimuli

    model, count = stable_diffusion(args), 4
    stimuli, captions = scene_stimuli(count)

    def extract():
        extract_features(model, stimuli, captions)
    seconds = timed(extract)
    return [row("cvpr", "img2feat_sd1", f"{count} images", seconds, seconds * STIMULI / count,
                STIMULI * (LATENT + CONDITIONING) * 4, operations(extract) * STIMULI / count)]


def img2feat_blip(args):
    """BLIP base's embeddings of 4 images in bfloat16, and captions of 2 in float32."""
    import torch
    from transformers import BertTokenizer, BlipConfig, BlipForConditionalGeneration, BlipImageProcessor

    from utils.generate import captioning

    network = BlipForConditionalGeneration(BlipConfig()).eval()
    captioner = captioning.Captioner(network, BertTokenizer(), BlipImageProcessor())
    said = timed(lambda: captioner.caption(torch.randn(2, *captioner.shape)))
    spoken = operations(lambda: captioner.caption(torch.randn(2, *captioner.shape)))
    captioner.network.to(torch.bfloat16)
    pixels = torch.randn(4, 3, captioner.size, captioner.size)
    seconds = timed(lambda: captioner.embed(pixels))
    return [row("text", "img2feat_blip", "4 images", seconds, seconds * STIMULI / 4, STIMULI * BLIP * 2,
                operations(lambda: captioner.embed(pixels)) * STIMULI / 4),
            row("text", "decode_captions", "2 captions", said, said * TEST / 2, 0, spoken * TEST / 2)]


def img2feat_dpt(args):
    """DPT large's hidden states of 4 images in bfloat16, and depth from them in float32."""
    import torch
    from transformers import DPTConfig, DPTForDepthEstimation, DPTImageProcessor

    from utils.generate import depth_maps

    network = DPTForDepthEstimation(DPTConfig(
        hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096,
        backbone_out_indices=[5, 11, 17, 23], neck_hidden_sizes=[256, 512, 1024, 1024])).eval()
    estimator = depth_maps.DepthEstimator(network, DPTImageProcessor())
    pixels, states = torch.randn(4, 3, 384, 384), [torch.randn(4, *estimator.shape)] * 4
    deep = timed(lambda: estimator.depth(states))
    counted = operations(lambda: estimator.depth(states))
    estimator.network.to(torch.bfloat16)
    seconds = timed(lambda: estimator.hidden_states(pixels))
    return [row("depth", "img2feat_dpt", "4 images", seconds, seconds * STIMULI / 4, STIMULI * DPT * 2,
                operations(lambda: estimator.hidden_states(pixels)) * STIMULI / 4),
            # Of decoded and of true states.
            row("depth", "dptemb2dpt", "4 maps", deep, 2 * deep * TEST / 4, 2 * TEST * 100_000, 2 * counted * TEST / 4)]


def vgg19(args):
    """The Caffe VGG19's layers of 8 images in bfloat16, and two steps of the inversion of 4 with the relu7
    generator."""
    import torch

    from benchmarks._shared import vgg19_and_generator
    from utils.generate import gan_inversion

    encoder, generator, _ = vgg19_and_generator(torch.device("cpu"))
    pictures = torch.randn(8, 3, encoder.image_size, encoder.image_size)
    seconds = timed(lambda: gan_inversion.activations(encoder, pictures, gan_inversion.LAYERS, torch.bfloat16))
    extracted = operations(lambda: gan_inversion.activations(encoder, pictures, gan_inversion.LAYERS, torch.bfloat16))
    targets = {layer: torch.randn(4, *shape) for layer, shape in VGG19.items()}

    def invert():
        gan_inversion.invert(encoder, generator, targets, torch.rand(4, 4_096), n_iter=2)

    def forward():
        made = gan_inversion.central(generator.network(torch.rand(4, 4_096)), encoder.image_size)
        encoder.activations(made, gan_inversion.LAYERS)
    inverted = timed(invert)
    share = TEST * gan_inversion.N_ITER / (4 * 2)
    return [row("gan", "make_vgg19bdpy", "8 images", seconds, seconds * STIMULI / 8, STIMULI * VGG19_DIMS * 2,
                extracted * STIMULI / 8),
            row("gan", "recon_icnn_image_…", "2 steps of 4 pictures", inverted, inverted * share,
                # and the .mat files of make_vgg19fromdecode.py
                TEST * (VGG19_DIMS * 4 + 150_000),
                # The gradient, of the input alone, costs what the way forward does; the counter cannot follow it.
                2 * 2 * operations(forward) * share)]


def make_subjstim(args):
    """A subject's matrix of 512 stimuli × 59,136 dims, by its script."""
    from utils.storage import arrays, feature_shards

    count = 512
    with tempfile.TemporaryDirectory() as folder:
        ws = layout.Workspace(Path(folder), "subj01")
        ids = np.arange(count)
        arrays.write_npy(ws.stims, ids)
        arrays.write_npy(ws.stims_ave, ids)
        arrays.write_npy(ws.stims_ave_test, ids % 10 == 0)
        shards = feature_shards.Shards(layout.features(folder, "c"))
        random = np.random.default_rng(DRAW)
        for start in range(0, count, 256):
            shards.write(ids[start:start + 256], random.standard_normal((256, CONDITIONING), np.float32),
                         {"stimuli": "nsd"})
        seconds, peak = script("make_subjstim.py", "--featname", "c", "--use_stim", "each", "--subject", "subj01",
                               "--workdir", folder)
    sizes = {"cvpr": (LATENT + CONDITIONING) * 4, "text": BLIP * 2, "gan": VGG19_DIMS * 2, "depth": DPT * 2}
    return [row(method, "make_subjstim", f"{count} stimuli × {CONDITIONING:,}", seconds,
                seconds * STIMULI * size / (count * CONDITIONING * 4), STIMULI * size, peak=peak)
            for method, size in sizes.items()]


def ridge(name, voxels, dims, args):
    """Factorise all training trials, and decode a slice of the dims."""
    random, part = np.random.default_rng(DRAW), 1_024
    rows = np.concatenate([np.arange(TRAIN_STIMULI), random.integers(TRAIN_STIMULI, size=TRAIN_TRIALS - TRAIN_STIMULI)])
    signal = random.standard_normal((TRAIN_STIMULI, 64), np.float32)
    mixing = random.standard_normal((64, voxels), np.float32)
    train = (100 * (signal[rows] @ mixing
                    + 8 * random.standard_normal((TRAIN_TRIALS, voxels), np.float32))).astype(np.int16)
    targets = signal @ random.standard_normal((64, part), np.float32)
    first, rest = fitted(train, rows, targets, random.standard_normal((TEST, voxels), np.float32))
    return [row("cvpr", name, f"all trials, {part:,} of {dims:,} dims", first + rest, first + rest * dims / part,
                TEST * dims * 4)]


def ridge_of_averages(args):
    """Factorise the averages of all training stimuli, and decode a slice of the dims of each further method."""
    random, part = np.random.default_rng(DRAW), 1_024
    signal = random.standard_normal((TRAIN_STIMULI, 64), np.float32)
    train = signal @ random.standard_normal((64, AVERAGED), np.float32)
    for rows in np.array_split(train, 16):
        rows += 5 * random.standard_normal(rows.shape, np.float32)
    targets = signal @ random.standard_normal((64, part), np.float32)
    first, rest = fitted(train, np.arange(TRAIN_STIMULI), targets, random.standard_normal((TEST, AVERAGED), np.float32))
    return [row(method, f"ridge {name}", f"averages, {part:,} of {dims:,} dims", first + rest,
                first + rest * dims / part, TEST * dims * 4)
            for method, name, dims in (("text", "blip", BLIP), ("gan", "VGG19", VGG19_DIMS),
                                       ("depth", "dpt_emb0–3", DPT))]


def fitted(train, rows, targets, test):
    """Seconds to factorise training voxels (trials, voxels), and then to decode targets (stimuli, dims)."""
    from utils.ridge import ridge_decoder

    out = np.empty((TEST, targets.shape[1]), np.float32)
    start = time.perf_counter()
    decoder = ridge_decoder.Decoder(train, rows, n_stimuli=TRAIN_STIMULI)
    decoder.predict_to(targets[:, :64], test, out[:, :64])
    first = time.perf_counter() - start
    start = time.perf_counter()
    decoder.predict_to(targets, test, out)
    return first, time.perf_counter() - start


def diffusion_decoding(args):
    """One guided step of two latents, the start image's way, and one picture's decoding."""
    import torch

    model = stable_diffusion(args)
    latents, text = torch.randn(2, 4, 64, 64), torch.randn(2, 77, 768)

    @torch.inference_mode()
    def step():
        model.checkpoint.unet(latents.to(model.dtype), 500, encoder_hidden_states=text.to(model.dtype))

    def ends():
        model.decode(model.encode(model.start_image(torch.randn(1, LATENT))))
    stepped, around = timed(step), timed(ends)

    def of_all(one_step, one_end):
        return TEST * SAMPLES * (STEPS * one_step * GUIDED / 2 + one_end)
    return [row(EVERY, "diffusion_decoding", "1 step, 1 decoding", stepped + around, of_all(stepped, around),
                TEST * (SAMPLES + 1) * 450_000, of_all(operations(step), operations(ends)))]


def img2feat_decoded(args):
    """Inception v3, AlexNet and CLIP ViT-L/14's vision tower, random weights, on 8 pictures."""
    import torch
    import torchvision
    from transformers import CLIPVisionConfig, CLIPVisionModel

    tower = CLIPVisionModel(CLIPVisionConfig(hidden_size=1024, intermediate_size=4096, num_hidden_layers=24,
                                             num_attention_heads=16, patch_size=14, image_size=224)).eval()
    nets = [torchvision.models.inception_v3(init_weights=False).eval(), torchvision.models.alexnet().eval()]
    count = 8

    @torch.inference_mode()
    def judge():
        for net in nets:
            net(torch.randn(count, 3, 299, 299))
        tower(torch.randn(count, 3, 224, 224), output_hidden_states=True)
    seconds = timed(judge)
    pictures = TEST * (SAMPLES + 1)
    return [row(EVERY, "img2feat_decoded", f"{count} pictures", seconds, seconds * pictures / count,
                pictures * EVALUATED * 4, operations(judge) * pictures / count)]


def identify(args):
    """All images and samples, 2,048 dims; scaled by dims to the five usual features."""
    from utils.evaluate import identification

    random, dims = np.random.default_rng(DRAW), 2_048
    originals = random.standard_normal((TEST, dims), np.float32)
    samples = random.standard_normal((TEST, SAMPLES, dims), np.float32)
    seconds = timed(lambda: identification.summary(identification.correlations(
        range(TEST), originals.__getitem__, samples.__getitem__)))
    return [row(EVERY, "identification", "inception's size", seconds, seconds * EVALUATED / dims, 0)]


# Each in a process of its own, and the methods that it is for.
STAGES = {
    "make_subjmri": (make_subjmri, ["cvpr"]),
    "img2feat_sd1": (img2feat, ["cvpr"]),
    "img2feat_blip": (img2feat_blip, ["text"]),
    "make_vgg19bdpy": (vgg19, ["gan"]),
    "img2feat_dpt": (img2feat_dpt, ["depth"]),
    "make_subjstim": (make_subjstim, layout.METHODS),
    "ridge init_latent": (lambda args: ridge("ridge init_latent, early", EARLY, LATENT, args), ["cvpr"]),
    "ridge c": (lambda args: ridge("ridge c, ventral", VENTRAL, CONDITIONING, args), ["cvpr"]),
    "ridge of averages": (ridge_of_averages, layout.METHODS[1:]),
    "diffusion_decoding": (diffusion_decoding, layout.METHODS),
    "img2feat_decoded": (img2feat_decoded, layout.METHODS),
    "identification": (identify, layout.METHODS),
}


def row(method, stage, measured, seconds, scaled, disk, operations=None, peak=None):
    """A line of the table. scaled: seconds, operations and disk (bytes) of one subject;
    peak: MiB, else the process's."""
    return {"method": method, "stage": stage, "measured": measured, "seconds": seconds, "scaled": scaled, "disk": disk,
            "operations": operations, "peak": peak}


def stable_diffusion(args):
    import torch

    from utils.generate import diffusion
    from utils.models import loading

    os.environ["NSD_MODELS"] = str(args.models)
    return diffusion.LatentDiffusion(loading.StableDiffusion("sd", torch.device("cpu"), torch.bfloat16))


def script(*command, **environment):
    """Seconds and peak MiB of one of the root's scripts."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *command], check=True, cwd=ROOT, env=os.environ | environment, capture_output=True)
    return time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024


def peak_mib():
    """Peak resident memory of this process (ru_maxrss would carry over the parent's)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def timed(function):
    """Seconds of the second of two calls."""
    function()
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def operations(function):
    """Floating-point operations of one call's products and convolutions."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


def duration(seconds):
    return (f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min" if seconds >= 60
            else f"{seconds:.1f} s")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=layout.METHODS, default=layout.METHODS,
                        help="default: all four")
    parser.add_argument("--models", type=Path, default=ROOT / ".bench", metavar="DIR",
                        help="where SD 1.4's architecture is, or is written (default: .bench)")
    parser.add_argument("--gpu_tflops", type=float, default=40, metavar="N",
                        help="rate that a GPU is assumed to sustain in half precision, 1e12 operations a second "
                        "(default: 40)")
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.stage:
        found = STAGES[args.stage][0](args)
        print(json.dumps([each | {"peak": each["peak"] or peak_mib()} for each in found]))
        return
    from benchmarks._shared import write_real

    write_real(args.models)
    print(f"{'method':<7} {'stage, one subject':<26} {'measured':<35} {'took':>9} {'peak MiB':>9} {'projected':>10} "
          f"{'disk':>10} {'GPU, assumed':>13}", flush=True)
    totals = {method: np.zeros(3) for method in args.methods}
    for stage, (_, methods) in STAGES.items():
        if not set(methods) & set(args.methods):
            continue
        done = subprocess.run([sys.executable, __file__, "--models", args.models, "--stage", stage], check=True,
                              stdout=subprocess.PIPE, text=True)
        for found in json.loads(done.stdout.splitlines()[-1]):
            if found["method"] not in (*args.methods, EVERY):
                continue
            counted = found["operations"]
            # A stage without networks is taken to run on the CPU all the same.
            seconds = found["scaled"] if counted is None else counted / (args.gpu_tflops * 1e12)
            for method in args.methods:
                if found["method"] in (method, EVERY):
                    totals[method] += found["scaled"], found["disk"], seconds
            print(f"{found['method']:<7} {found['stage']:<26} {found['measured']:<35} {duration(found['seconds']):>9} "
                  f"{found['peak']:>9,.0f} {duration(found['scaled']):>10} {found['disk'] / 1e9:>7.2f} GB "
                  f"{duration(seconds) if counted else '—':>13}", flush=True)
    for method, (scaled, disk, on_gpu) in {**totals, "total": sum(totals.values())}.items():
        print(f"{method:<7} {'all its stages':<26} {'':<35} {'':>9} {'':>9} {duration(scaled):>10} "
              f"{disk / 1e9:>7.2f} GB {duration(on_gpu):>13}")
    print(f"GPU, assumed: not measured; counted operations at {args.gpu_tflops:g} TFLOP/s, the other stages on this "
          "CPU. gan and depth also need text's captions.\nridge.py --stream keeps VGG19's layers off the disk, for the "
          "price of computing them twice.")


if __name__ == "__main__":
    main()
