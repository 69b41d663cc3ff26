"""The GAN inversion on a CPU: what an iteration takes at real size, and what fewer of them or coarser products lose.

    python benchmarks/inversion.py            # 20 minutes on one thread; needs 5 GB
    python benchmarks/inversion.py --small    # without the Caffe architectures: 8 minutes

First the Caffe VGG19 and the relu7 generator with random weights: processor seconds that a picture's iteration takes,
the way before (direct convolutions, and a loss that is squared and differentiated) against ours, in turn, the fastest
of each counts; and how far the last layer is from the direct one's.

Then recon_icnn_image_vgg19_dgn_relu7gen_gd.py on what `make demo` decoded (SIMULATED subject), so that comes first;
else it is left out. Another start (--seed) says how far pictures move by chance.
"""
import argparse
import contextlib
import copy
import dataclasses
import os
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
import recon_icnn_image_vgg19_dgn_relu7gen_gd as script  # noqa: E402
from benchmarks._shared import vgg19_and_generator  # noqa: E402
from utils import images, layout, lazy  # noqa: E402
from utils.evaluate import identification, judging_networks, picture_metrics  # noqa: E402
from utils.generate import gan_inversion  # noqa: E402
from utils.models import loading, winograd  # noqa: E402
from utils.nsd import trials  # noqa: E402

torch = lazy.module("torch")

SUBJECT, TEST = "subj01", 982
JUDGES = ("alexnet5", "inception", "clip")
BATCHES = (16, 4)  # pictures at once; the first is the way before


def as_before(encoder, generator, z, targets):
    """The gradient of one iteration as it was computed before."""
    weights = gan_inversion.layer_weights(targets)
    found = encoder.activations(gan_inversion.central(generator.network(z), encoder.image_size), list(targets))
    loss = sum((weights[layer] * (found[layer] - target).flatten(1).square().sum(1)).sum()
               for layer, target in targets.items())
    return torch.autograd.grad(loss, z)[0]


def real_size(repeats):
    """The first table."""
    torch.manual_seed(0)
    encoder, generator, shapes = vgg19_and_generator(torch.device("cpu"))
    for module in encoder.network.modules():
        if hasattr(module, "weight"):
            torch.nn.init.kaiming_normal_(module.weight)  # PyTorch's own start would fade out in 19 layers
    turned = dataclasses.replace(encoder, network=copy.deepcopy(encoder.network).to(
        memory_format=torch.channels_last))
    picture = 50 * torch.randn(1, 3, encoder.image_size, encoder.image_size)
    direct, = gan_inversion.activations(encoder, picture, ["fc8"])
    last = {count: {layer: torch.randn(count, *shape) for layer, shape in shapes.items()} for count in BATCHES}
    fast = dataclasses.replace(encoder, run=winograd.run)

    def before(count, encoder=encoder):
        as_before(encoder, generator, torch.rand(count, len(generator.bound)).requires_grad_(), last[count])

    def ours(count, encoder=fast):
        gan_inversion.invert(encoder, generator, last[count], torch.rand(count, len(generator.bound)), 1)
    most, fewest = BATCHES
    ways = [(f"before, {most} pictures at once", before, most, encoder), (f"before, {fewest}", before, fewest, encoder),
            (f"before, {fewest}, channels_last", before, fewest, turned),
            (f"the slope written out, {most}", ours, most, encoder),
            (f"and winograd, {most}", ours, most, fast), (f"and winograd, {fewest}", ours, fewest, fast)]
    taken = {name: [] for name, *_ in ways}
    for _ in range(repeats + 1):  # the first does not count
        for name, way, count, network in ways:
            start = time.process_time()
            way(count, network)
            taken[name].append((time.process_time() - start) / count)
    reference = min(taken[ways[0][0]][1:])
    print(f"{'an iteration, Caffe VGG19 and relu7 generator':<46} {'CPU s a picture':>15} {'ratio':>7} "
          f"{'fc8 differs':>12} {'982 × 200':>10}")
    for name, _, _, network in ways:
        seconds = min(taken[name][1:])
        apart = float((gan_inversion.activations(network, picture, ["fc8"])[0] - direct).std() / direct.std())
        print(f"{name:<46} {seconds:>15.3f} {reference / seconds:>6.2f}× {apart:>12.1e} "
              f"{seconds * TEST * gan_inversion.N_ITER / 3600:>8.0f} h")
    coarse, = gan_inversion.activations(encoder, picture, ["fc8"], torch.bfloat16)
    print(f"{'bfloat16 (not timed: emulated' if not loading.cpu_has_bfloat16() else '(not timed'} here)"
          f"{float((coarse - direct).std() / direct.std()):>52.1e}", flush=True)


def rounded(encoder, generator, *_):
    """In place of gan_inversion.with_arithmetic: what bfloat16 gives on a processor that has it, in float32.

    Weights, and what each layer takes and gives, forwards and backwards, are rounded to bfloat16; sums are float32's.
    """
    for each in (encoder, generator):
        network = copy.deepcopy(each.network)
        for parameter in network.parameters():
            parameter.copy_(parameter.bfloat16())
        for layer in network.modules():
            if not list(layer.children()):
                layer.register_forward_pre_hook(lambda _, inputs: inputs[0].bfloat16().float())
                layer.register_forward_hook(lambda _, inputs, output: output.bfloat16().float())
        yield dataclasses.replace(each, network=network)
    yield {"precision": "rounded to bfloat16"}


def settings(demo, count):
    """The second table."""
    world, work = layout.demo(demo)
    os.environ.update(NSD_ROOT=str(world), NSD_MODELS="tiny")
    ws = layout.Workspace(work, SUBJECT)
    chosen = range(min(count, len(trials.test_stimuli(ws))))
    judges, encoder = judging_networks.Evaluators(JUDGES, torch.device("cpu")), loading.vgg19(torch.device("cpu"))
    originals = np.stack([images.load(layout.original_image(ws.samples("cvpr"), index)) for index in chosen])
    true, seen = [picture_metrics.prepared(each) for each in originals], judges(originals)
    decoded = {layer: [gan_inversion.read_mat(ws.gan_features(layer, index), shape, "") for index in chosen]
               for layer, shape in encoder.shapes(gan_inversion.LAYERS).items()}
    print(f"\n{f'{len(chosen)} simulated test images':<24} {'CPU s':>7} {'r of layers':>12} {'PixCorr':>8} "
          f"{'less than the first':>20} " + " ".join(f"{name:>20}" for name in JUDGES))
    reference = None
    for name, flags, arithmetic in SETTINGS:
        with tempfile.TemporaryDirectory() as folder:
            own = layout.Workspace(Path(folder), SUBJECT)
            for read in (lambda each: each.mrifeat, lambda each: each.gan_features("fc8", 0).parents[3]):
                read(own).parent.mkdir(parents=True, exist_ok=True)
                read(own).symlink_to(read(ws).resolve())
            start = time.process_time()
            with (mock.patch.object(gan_inversion, "with_arithmetic", arithmetic), open(os.devnull, "w") as silent,
                  contextlib.redirect_stdout(silent), contextlib.redirect_stderr(silent)):
                script.main(["--subject", SUBJECT, "--workdir", folder, "--gpu", "-1", "--imgidx", "0",
                             str(len(chosen)), "--stimuli_path", str(layout.stimuli(work)), *flags])
            used = time.process_time() - start
            made = np.stack([images.load(own.gan_image(index)) for index in chosen])
        reached = gan_inversion.activations(encoder, encoder.prepare(made), gan_inversion.LAYERS)
        layers = np.mean([[np.corrcoef(one.ravel(), other.ravel())[0, 1]
                           for one, other in zip(decoded[layer], found.numpy())]
                          for layer, found in zip(gan_inversion.LAYERS, reached)])
        pixels = np.array([picture_metrics.pixel_correlation(one, picture_metrics.prepared(other))
                           for one, other in zip(true, made)])
        reference = pixels if reference is None else reference
        low, high = identification.interval(reference - pixels)
        found, told = judges(made), []
        for judge in JUDGES:
            told.append(identification.summary(identification.correlations(
                chosen, seen[judge].__getitem__, lambda j, own=found[judge]: own[j:j + 1])))
        print(f"{name:<24} {used:>7.0f} {layers:>12.3f} {pixels.mean():>8.3f} {f'[{low:+.3f}, {high:+.3f}]':>20} "
              + " ".join(f"{each['accuracy']:>7.3f} [{each['interval'][0]:.2f}, {each['interval'][1]:.2f}]"
                         for each in told), flush=True)


AS_IT_IS = gan_inversion.with_arithmetic
SETTINGS = [("200 iterations", [], AS_IT_IS), ("200, another start", ["--seed", "43"], AS_IT_IS),
            *((f"{count}, rate {rate:g}", ["--n_iter", f"{count}", "--learning_rate", f"{rate}"], AS_IT_IS)
              for count, rate in ((100, 2), (100, 0.7), (50, 2), (50, 0.3))),
            ("200, bfloat16", [], rounded)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, default=ROOT / "demo", metavar="DIR",
                        help="what `make demo` wrote (default: demo)")
    parser.add_argument("--images", type=int, default=64, help="test images of the second table (default: 64)")
    parser.add_argument("--repeats", type=int, default=1, help="iterations of the first table that count (default: 1)")
    parser.add_argument("--small", action="store_true", help="without the Caffe architectures")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if not args.small:
        real_size(args.repeats)
    if layout.demo(args.demo)[1].exists():
        settings(args.demo, args.images)
    else:
        print(f"\nsettings: {args.demo} does not exist; run make demo first")


if __name__ == "__main__":
    main()
