"""What fewer solver steps, fewer samples and smaller pictures give up, on what `make demo` decoded (SIMULATED subject).

    python benchmarks/presets.py            # after make demo: 15 minutes; all its test images, the CVPR method
    python benchmarks/presets.py --few      # the presets alone

Every row makes the test images again from the same decoded features and the same noise, and is held against DDIM's 50
steps with five samples (`--preset paper`): identification by three networks and PixCorr, each with a 95% interval over
images, and what is lost against the paper's way, image by image, with its interval. Seconds are of the small models.
"""
import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from benchmarks._shared import small  # noqa: E402
from utils import images, layout  # noqa: E402
from utils.evaluate import identification, judging_networks, picture_metrics  # noqa: E402
from utils.generate import diffusion, reconstruction  # noqa: E402
from utils.pipeline import presets  # noqa: E402

JUDGES = ("clip", "inception", "alexnet5")
SEED, BATCH = 42, 16
WAY = ("scheduler", "steps", "n_samples", "size", "start", "guided_below")
# Beside the presets', from the paper's to the night's and beyond it.
OTHERS = [("ddim", 50, 1, 1, "picture", 1), ("unipc", 10, 1, 1, "picture", 1), ("unipc", 5, 1, 1, "picture", 1),
          ("dpm", 5, 1, 1, "picture", 1), ("ddim", 5, 1, 1, "picture", 1), ("unipc", 5, 1, 1, "latent", 1),
          ("unipc", 5, 1, 1, "latent", 0.6), ("unipc", 5, 1, 0.8125, "latent", 1), ("unipc", 4, 1, 1, "latent", 1),
          ("unipc", 5, 1, 0.75, "latent", 0.6), ("unipc", 5, 1, 0.625, "latent", 0.6)]


def ways(few):
    """{label: WAY's values}; the paper's first."""
    found = {f"--preset {name}": tuple(preset[key] for key in WAY) for name, preset in presets.PRESETS.items()}
    others = {f"{way[0]} {way[1]}, size {way[3]:g}, {way[4]}, guided {way[5]:g}": way for way in OTHERS}
    return found if few else found | others


def made(latents, text, solver, steps, samples, size, start, guided_below):
    """((n, samples, H, W, 3) uint8, seconds an image) of the test images."""
    model = diffusion.LatentDiffusion(small(torch.float32).checkpoint, size)
    shape = (model.latent_channels, model.latent_side, model.latent_side)
    items = [(image, sample) for image in range(len(latents)) for sample in range(samples)]
    began, pictures = time.perf_counter(), []
    for first in range(0, len(items), BATCH):
        part = items[first:first + BATCH]
        rows = [image for image, _ in part]
        noise = torch.stack([diffusion.sample_noise(SEED, *item, shape) for item in part])
        pixels = model.img2img(model.start_latents(torch.from_numpy(latents[rows]), start),
                               torch.from_numpy(text[rows]).reshape(-1, *model.text_shape), noise, steps=steps,
                               solver=solver, guided_below=guided_below, progress=False)
        pictures.append(images.to_pixels(pixels))
    seconds = (time.perf_counter() - began) / len(latents)
    return np.concatenate(pictures).reshape(len(latents), samples, *pictures[0].shape[1:]), seconds


def measures(judges, originals, seen, pictures):
    """{name: (n,) value of each image}: identification in percent by each network, and PixCorr, over the samples."""
    count, samples = pictures.shape[:2]
    flat = pictures.reshape(-1, *pictures.shape[2:])
    found = {name: [] for name in JUDGES}
    for start in range(0, len(flat), 32):
        for name, part in judges(flat[start:start + 32]).items():
            found[name].append(part)
    values = {}
    for name, parts in found.items():
        features = np.concatenate(parts).reshape(count, samples, -1)
        values[name] = 100 * identification.accuracy(identification.correlations(
            range(count), seen[name].__getitem__, features.__getitem__))
    values["PixCorr"] = np.array([np.mean([picture_metrics.pixel_correlation(
        picture_metrics.prepared(original), picture_metrics.prepared(sample)) for sample in of_image])
        for original, of_image in zip(originals, pictures)])
    return values


def shown(values, digits):
    low, high = identification.interval(values, SEED)
    return f"{values.mean():.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, default=ROOT / "demo" / "work", help="default: demo/work")
    parser.add_argument("--images", type=int, help="the first N test images (default: all)")
    parser.add_argument("--few", action="store_true", help="the presets alone")
    args = parser.parse_args()
    ws = layout.Workspace(args.workdir, "subj01")
    if not ws.samples("cvpr").is_dir():
        raise SystemExit(f"{ws.samples('cvpr')} does not exist: run make demo first")
    latents, text = (np.load(ws.scores([roi], name))[:args.images] for name, roi in reconstruction.ROI_OF.items())
    originals = np.stack([images.load(layout.original_image(ws.samples("cvpr"), index))
                          for index in range(len(latents))])
    judges = judging_networks.Evaluators(JUDGES, torch.device("cpu"))
    seen = judges(originals)
    print(f"SIMULATED subject, {len(latents)} test images, whole, CVPR method; value [95% over images], and below it "
          "the difference from --preset paper\n")
    print(f"{'':<42}{'s/image':>8}" + "".join(f"{name:>24}" for name in (*JUDGES, "PixCorr")))
    paper = None
    for label, way in ways(args.few).items():
        pictures, seconds = made(latents, text, *way)
        values = measures(judges, originals, seen, pictures)
        paper = values if paper is None else paper
        digits = {name: 3 if name == "PixCorr" else 1 for name in values}
        print(f"{label:<42}{seconds:>8.2f}" + "".join(f"{shown(values[name], digits[name]):>24}" for name in values))
        print(f"{'':<50}" + "".join(f"{shown(values[name] - paper[name], digits[name]):>24}" for name in values),
              flush=True)


if __name__ == "__main__":
    main()
