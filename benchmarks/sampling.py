"""Feature extraction against the published procedure, precision, and solvers with fewer steps than DDIM's 50.

    python benchmarks/sampling.py            # 15 minutes; needs 6 GB, and 2 GB of disk in .bench
    python benchmarks/sampling.py --small    # without SD 1.4's architecture (random weights): 3 minutes

Of a GPU: benchmarks/gpu.py.

Solvers are compared on what `make demo` decoded (SIMULATED subject), so that comes first; else they are left out.

The published img2feat_sd1 encodes one image, runs 40 guided denoising steps at batch 1, decodes and throws the result
away (docs/published_defects.md#sampling-thrown-away). Both sides use the same weights in the same run; the fastest of
a few repeats counts.
"""
import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from benchmarks._shared import extract_as_published, extract_features, fastest, real, scene_stimuli, small  # noqa: E402
from utils import images, layout  # noqa: E402
from utils.evaluate import identification, judging_networks  # noqa: E402
from utils.generate import diffusion  # noqa: E402

IMAGES = 64
SOLVERS = (("ddim", 50), ("ddim", 20), ("ddim", 10), ("dpm", 20), ("dpm", 10), ("dpm", 5), ("unipc", 20), ("unipc", 10),
           ("unipc", 5))


def features(model, name, count, repeats):
    stimuli, captions = scene_stimuli(count)
    each = fastest(lambda: extract_features(model, stimuli, captions), repeats) / count
    theirs = fastest(lambda: extract_as_published(model, stimuli[0], captions[0]), repeats)
    print(f"{name:<44} {1 / each:>9.2f} {1 / theirs:>10.3f} {theirs / each:>8.0f}×")


def precision(build, shape, name):
    """Seconds of one UNet step, float32 against bfloat16, and how far apart the outputs are."""
    torch.manual_seed(0)
    latents, text = torch.randn(shape), torch.randn(shape[0], *build(torch.float32).text_shape)
    seconds, outputs = [], []
    for dtype in (torch.float32, torch.bfloat16):
        model = build(dtype)

        @torch.inference_mode()
        def step():
            return model.checkpoint.unet(latents.to(dtype), 500, encoder_hidden_states=text.to(dtype)).sample.float()
        seconds.append(fastest(step, 2))
        outputs.append(step())
    apart = float((outputs[0] - outputs[1]).std() / outputs[0].std())
    print(f"{name:<44} {seconds[0]:>9.2f} {seconds[1]:>10.2f} {seconds[0] / seconds[1]:>8.1f}×   (outputs differ by "
          f"{apart:.1%} of their sd)")


def solvers(workdir, count):
    """Identification and agreement with DDIM's 50 steps, by solver and steps, from what the demo decoded."""
    model, ws = small(torch.bfloat16), layout.Workspace(Path(workdir), "subj01")
    judges = judging_networks.Evaluators(["clip", "alexnet5"], torch.device("cpu"))
    latents, text = (np.load(ws.scores([roi], name))[:count]
                     for name, roi in (("init_latent", "early"), ("c", "ventral")))
    originals = judges(np.stack([images.load(layout.original_image(ws.samples("cvpr"), index))
                                 for index in range(count)]))
    start = model.start_latents(torch.from_numpy(latents))
    noise = torch.stack([diffusion.sample_noise(42, index, 0, (4, model.latent_side, model.latent_side))
                         for index in range(count)])
    conditioning = torch.from_numpy(text).reshape(-1, *model.text_shape)
    reference = None
    print(f"\n{'solver, ' + str(count) + ' simulated test images × 1':<44} {'s/image':>9} {'clip':>10} {'alexnet5':>9} "
          f"{'levels from DDIM 50':>20}")
    for solver, steps in SOLVERS:
        began = time.perf_counter()
        pixels = torch.cat([model.img2img(*part, steps=steps, solver=solver, progress=False) for part in zip(
            start.split(16), conditioning.split(16), noise.split(16))])
        seconds = time.perf_counter() - began
        pictures = images.to_pixels(pixels)
        reference = pictures if reference is None else reference
        found = judges(pictures)
        scores = [identification.accuracy(identification.correlations(
            range(count), originals[name].__getitem__, lambda j, name=name: found[name][j:j + 1])).mean()
            for name in ("clip", "alexnet5")]
        apart = np.abs(pictures.astype(int) - reference).mean()
        print(f"{solver + ' ' + str(steps):<44} {seconds / count:>9.2f} {scores[0]:>10.3f} {scores[1]:>9.3f} "
              f"{apart:>20.1f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, default=ROOT / "demo" / "work", help="default: demo/work")
    parser.add_argument("--images", type=int, default=48, help="test images for the solvers (default: 48)")
    parser.add_argument("--small", action="store_true", help="without SD 1.4's architecture")
    args = parser.parse_args()
    print(f"{'features (init_latent and c)':<44} {'images/s':>9} {'published':>10} {'ratio':>9}")
    features(small(torch.bfloat16), "small models, bfloat16", IMAGES, 3)
    if not args.small:
        features(real(torch.bfloat16), "SD 1.4 architecture, bfloat16, 4 images", 4, 1)
    print(f"\n{'one UNet step':<44} {'float32 s':>9} {'bfloat16 s':>10} {'ratio':>9}")
    precision(small, (16, 4, 16, 16), "small UNet, batch 16")
    if not args.small:
        precision(real, (2, 4, 64, 64), "SD 1.4 UNet, 64×64, batch 2")
    if args.workdir.exists():
        solvers(args.workdir, args.images)
    else:
        print(f"\nsolvers: {args.workdir} does not exist; run make demo first")


if __name__ == "__main__":
    main()
