"""The CVPR method's stages at NSD's true shapes on this machine: time, peak memory, disk, projected to one subject.

    python benchmarks/rehearsal.py                   # 7 minutes; writes SD 1.4's architecture, random weights, to .bench (2 GB)

Inputs are synthetic, sizes are subj01's. Each stage runs on a slice, in a process of its own, and is scaled; what is
measured and what it is scaled to are printed. No GPU is used. What one would take is NOT measured: the last column
divides the networks' floating-point operations, counted here, by a rate that one assumes (--gpu_tflops).
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
TRIALS, TRAIN_TRIALS, TRAIN_STIMULI, STIMULI, TEST = 30_000, 24_980, 8_859, 9_841, 982  # subj01, 37 sessions of training
EARLY, VENTRAL, LATENT, CONDITIONING = 5_917, 7_604, 6_400, 59_136
SAMPLES, STEPS, GUIDED = 5, 40, 2
DRAW = 0


def make_subjmri(args):
    """One session of 60 volumes, from a local folder."""
    from benchmarks.subjmri import ROIS, write_world

    volumes = 60
    with tempfile.TemporaryDirectory() as folder:
        world = Path(folder) / "nsd"
        world.mkdir()
        write_world(world, 1, volumes)
        start = time.perf_counter()
        subprocess.run([sys.executable, "make_subjmri.py", "--subject", "subj01", "--workdir", folder], check=True, cwd=ROOT,
                       env=os.environ | {"NSD_ROOT": str(world)}, capture_output=True)
        seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    return {"measured": f"{volumes} volumes", "seconds": seconds, "scaled": seconds * TRIALS / volumes, "peak": peak,
            "disk": TRIALS * sum(ROIS.values()) * 2}


def img2feat(args):
    """Latents and caption embeddings of 4 images with SD 1.4's architecture in bfloat16."""
    from benchmarks.sampling import CAPTIONS
    from mini_nsd import scenes

    model, count = stable_diffusion(args), 4
    drawn = [scenes.sample(73, index) for index in range(count)]
    stimuli = np.stack([scenes.render(scene).image for scene in drawn])
    captions = [scenes.captions(scene)[:CAPTIONS] for scene in drawn]

    def extract():
        model.encode(model.prepare(stimuli))
        model.caption_features(captions)
    seconds = timed(extract)
    return {"measured": f"{count} images", "seconds": seconds, "scaled": seconds * STIMULI / count, "operations":
            operations(extract) * STIMULI / count, "disk": STIMULI * (LATENT + CONDITIONING) * 4}


def ridge(voxels, dims, args):
    """Factorise all training trials, and decode a slice of the dims."""
    from utils import regression

    random, part = np.random.default_rng(DRAW), 1_024
    rows = np.concatenate([np.arange(TRAIN_STIMULI), random.integers(TRAIN_STIMULI, size=TRAIN_TRIALS - TRAIN_STIMULI)])
    signal = random.standard_normal((TRAIN_STIMULI, 64), np.float32)
    mixing = random.standard_normal((64, voxels), np.float32)
    train = (100 * (signal[rows] @ mixing + 8 * random.standard_normal((TRAIN_TRIALS, voxels), np.float32))).astype(np.int16)
    targets = signal @ random.standard_normal((64, part), np.float32)
    test, out = random.standard_normal((TEST, voxels), np.float32), np.empty((TEST, part), np.float32)
    start = time.perf_counter()
    decoder = regression.Decoder(train, rows, n_stimuli=TRAIN_STIMULI)
    decoder.predict_to(targets[:, :64], test, out[:, :64])
    first = time.perf_counter() - start
    start = time.perf_counter()
    decoder.predict_to(targets, test, out)
    rest = time.perf_counter() - start
    return {"measured": f"all trials, {part:,} of {dims:,} dims", "seconds": first + rest,
            "scaled": first + rest * dims / part, "disk": TEST * dims * 4}


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
    return {"measured": "1 step, 1 decoding", "seconds": stepped + around, "scaled": of_all(stepped, around),
            "operations": of_all(operations(step), operations(ends)), "disk": TEST * (SAMPLES + 1) * 450_000}


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
    dims = 2_048 + 192 * 17 * 17 + 256 * 8 * 8 + 4_096 + 768 + 2 * 257 * 1_024
    pictures = TEST * (SAMPLES + 1)
    return {"measured": f"{count} pictures", "seconds": seconds, "scaled": seconds * pictures / count,
            "operations": operations(judge) * pictures / count, "disk": pictures * dims * 4}


def identify(args):
    """All images and samples, 2,048 dims; scaled by dims to the seven features."""
    from utils import identification

    random, dims = np.random.default_rng(DRAW), 2_048
    originals = random.standard_normal((TEST, dims), np.float32)
    samples = random.standard_normal((TEST, SAMPLES, dims), np.float32)
    seconds = timed(lambda: identification.summary(identification.correlations(
        range(TEST), originals.__getitem__, samples.__getitem__)))
    every = 2_048 + 192 * 17 * 17 + 256 * 8 * 8 + 4_096 + 768 + 2 * 257 * 1_024
    return {"measured": "inception's size", "seconds": seconds, "scaled": seconds * every / dims, "disk": 0}


STAGES = {
    "make_subjmri": make_subjmri,
    "img2feat_sd1": img2feat,
    "ridge init_latent, early": lambda args: ridge(EARLY, LATENT, args),
    "ridge c, ventral": lambda args: ridge(VENTRAL, CONDITIONING, args),
    "diffusion_decoding": diffusion_decoding,
    "img2feat_decoded": img2feat_decoded,
    "identification": identify,
}


def stable_diffusion(args):
    import torch

    from utils import diffusion, models

    os.environ["NSD_MODELS"] = str(args.models)
    return diffusion.LatentDiffusion(models.StableDiffusion("sd", torch.device("cpu"), torch.bfloat16))


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
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.1f} s"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=ROOT / ".bench", metavar="DIR",
                        help="where SD 1.4's architecture is, or is written (default: .bench)")
    parser.add_argument("--gpu_tflops", type=float, default=40, metavar="N",
                        help="rate that a GPU is assumed to sustain in half precision, 1e12 operations a second (default: 40)")
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.stage:
        found = STAGES[args.stage](args)
        print(json.dumps({"peak": peak_mib()} | found))
        return
    if not (args.models / "sd" / "unet").exists():
        from tests.test_real_architectures import write_stable_diffusion

        write_stable_diffusion(args.models)
    print(f"{'stage, one subject':<26} {'measured':<34} {'took':>9} {'peak MiB':>9} {'projected':>10} {'disk':>9} "
          f"{'GPU, assumed':>13}", flush=True)
    total = disk = on_gpu = 0
    for name in STAGES:
        done = subprocess.run([sys.executable, __file__, "--models", args.models, "--stage", name], check=True,
                              stdout=subprocess.PIPE, text=True)
        found = json.loads(done.stdout.splitlines()[-1])
        counted = found.get("operations")
        # A stage without networks is taken to run on the CPU all the same.
        seconds = found["scaled"] if counted is None else counted / (args.gpu_tflops * 1e12)
        total, disk, on_gpu = total + found["scaled"], disk + found["disk"], on_gpu + seconds
        print(f"{name:<26} {found['measured']:<34} {duration(found['seconds']):>9} {found['peak']:>9,.0f} "
              f"{duration(found['scaled']):>10} {found['disk'] / 1e9:>6.2f} GB "
              f"{duration(seconds) if counted else '—':>13}", flush=True)
    print(f"{'total':<26} {'':<34} {'':>9} {'':>9} {duration(total):>10} {disk / 1e9:>6.2f} GB {duration(on_gpu):>13}\n"
          f"GPU, assumed: not measured; counted operations at {args.gpu_tflops:g} TFLOP/s, the other stages on this CPU.")


if __name__ == "__main__":
    main()
