"""What a GPU makes of it, in under nine minutes, with no network and no data: every GPU figure that README lacks.

    python benchmarks/gpu.py             # one CUDA device; SD 1.4's architecture with random weights (2 GB in .bench)
    python benchmarks/gpu.py --small     # the rehearsal: small models, small sizes, on the CPU too; a minute

NEVER RUN on a GPU so far. Each part is a process of its own with a budget of time: one that fails or runs out keeps
what it measured, is named, and the others go on. Writes gpu.md and gpu.json to --out, after each part anew.

A line is the fastest of a few repeats. "ratio" is in items a second against the line marked (reference). "of
products" is the share of the rate that large matrix products reach on the same device in the same precision; float32
means no TF32. "peak" is the most that PyTorch's allocator handed out, "counted" what tests/pretend_gpu.py counts for
the same work: a pretended GPU, one and two items on the CPU, drawn on in a straight line to the batch. The counted are
tensors alone; workspaces of cuDNN and cuBLAS are the difference.
"""
import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from utils import cli  # noqa: E402
from utils.storage import text_files  # noqa: E402

MINUTES = 8.8  # for all parts


class Bench:
    """What a part is given: the device, the sizes, and where its lines go."""

    def __init__(self, small, batches):
        import torch

        from benchmarks import _shared
        from utils.models import loading

        torch.backends.cudnn.allow_tf32 = False
        torch.set_float32_matmul_precision("highest")
        self.small, self.batches = small, batches
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.half = loading.precision("auto", self.device)  # float32 again on a CPU without bfloat16
        self.build = _shared.small if small else _shared.real
        self.rates, self.flops = {}, {}

    def rate(self, dtype):
        """Floating-point operations a second of large products in a precision."""
        from benchmarks import _shared

        if dtype not in self.rates:
            self.rates[dtype] = _shared.products(self.device, dtype, 256 if self.small else 8192)
        return self.rates[dtype]

    def peak(self):
        """GiB that were handed out at most since `measured` began, or None without a GPU."""
        import torch

        return torch.cuda.max_memory_allocated() / 2**30 if self.device.type == "cuda" else None

    def forget_peak(self):
        import torch

        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def measured(self, what, function, items, unit, dtype, *, group, counting=None, reference=False, repeats=2, scale=1,
                 **more):
        """Time a function that handles `items`, and print its line; out of memory is a line too.

        group: lines that share a reference. counting: name of the work whose floating-point operations an item are
        counted once, for `share` (default: not counted); it may come with a function that is easier to count. scale:
        how many times the function's work `items` take.
        """
        import torch

        from benchmarks import _shared

        line = {"what": what + (" (reference)" if reference else ""), "group": group, "reference": reference,
                "items": items, "unit": unit} | more
        self.forget_peak()
        try:
            seconds = _shared.fastest(function, repeats) * scale
            line |= {"seconds": seconds, "rate": items / seconds, "peak": self.peak()}
            if counting:
                flops = items * self.operations(counting, function, items)
                line |= {"tflops": flops / seconds / 1e12, "share": flops / seconds / self.rate(dtype)}
        except torch.OutOfMemoryError:
            line["note"] = "out of memory"
        show(line)

    def operations(self, counting, function, items):
        """Floating-point operations of one item's products and convolutions."""
        from torch.utils.flop_counter import FlopCounterMode

        name, easier = counting if isinstance(counting, tuple) else (counting, None)
        if name not in self.flops:
            with FlopCounterMode(display=False) as counter:
                (easier or function)()
            self.flops[name] = counter.get_total_flops() / items
        return self.flops[name]


def show(line):
    """A line of the table, for the parent process."""
    print(json.dumps(line), flush=True)


def named(dtype):
    return str(dtype).removeprefix("torch.")


def prepare(bench):
    """Write SD 1.4's architecture where it is not there yet, so that no part waits for it."""
    from benchmarks import _shared

    if not bench.small:
        start = time.perf_counter()
        _shared.write_real()
        show({"what": "SD 1.4's architecture, random weights, written", "seconds": time.perf_counter() - start})


def products(bench):
    """The device's own rate, which the others are held against."""
    import torch

    from benchmarks import _shared

    size = 256 if bench.small else 8192
    for name, dtype, tf32 in (("float32", torch.float32, False), ("float32 as TF32", torch.float32, True),
                              ("float16", torch.float16, False), ("bfloat16", torch.bfloat16, False)):
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        rate = _shared.products(bench.device, dtype, size)
        show({"what": f"{size} × {size}, {name}" + (" (reference)" if name == "float32" else ""), "group": "products",
              "reference": name == "float32", "unit": "products/s", "seconds": 2 * size ** 3 / rate,
              "rate": rate / 2 / size ** 3, "tflops": rate / 1e12})


def unet_step(model, count, last=False, backend=None):
    """(step, uncompiled step): one guided step of `count` samples, of which the UNet sees two each.

    last: channels_last. backend: of torch.compile, None for not compiled.
    """
    import torch

    unet = model.checkpoint.unet.to(memory_format=torch.channels_last if last else torch.contiguous_format)
    network = torch.compile(unet, dynamic=False, backend=backend) if backend else unet
    side, dtype = model.latent_side, model.dtype
    latents = torch.randn(2 * count, unet.config.in_channels, side, side, device=model.device, dtype=dtype)
    text = torch.randn(2 * count, *model.text_shape, device=model.device, dtype=dtype)

    @torch.inference_mode()
    def step(network=network):
        return network(latents, 500, encoder_hidden_states=text).sample.float()
    return step, lambda: step(unet)


def unet(bench):
    """Guided steps of one sample a second, by batch, precision and memory format; what matters most comes first."""
    import torch

    least, *more = bench.batches
    cases = [(torch.float32, False, [least]), (bench.half, False, bench.batches), (bench.half, True, bench.batches),
             (torch.float32, True, bench.batches), (torch.float32, False, more)]
    done = set()
    for number, (dtype, last, batches) in enumerate(cases):
        model = bench.build(dtype, bench.device)
        for count in batches:
            if (dtype, last, count) in done:  # half precision is float32 where there is none
                continue
            done.add((dtype, last, count))
            bench.measured(f"batch {count}, {named(dtype)}{', channels_last' if last else ''}",
                           unet_step(model, count, last)[0], count, "steps/s", dtype, group="unet", counting="unet",
                           reference=number == 0, counted=("unet", count, dtype.itemsize))


def compiled(bench):
    """The same, compiled: the largest batch first, since compiling may take the rest of the budget."""
    model = bench.build(bench.half, bench.device)
    backend = "eager" if bench.small else "inductor"  # inductor takes minutes on a CPU
    for count in dict.fromkeys((bench.batches[-1], bench.batches[0])):
        start = time.perf_counter()
        step, plain = unet_step(model, count, last=True, backend=backend)
        step()
        what = f"batch {count}, {named(bench.half)}, channels_last, compiled ({backend})"
        bench.measured(what, step, count, "steps/s", bench.half, group="unet", counting=("unet", plain),
                       counted=("unet", count, bench.half.itemsize),
                       note=f"compiling took {time.perf_counter() - start:.0f} s")


def vae(bench):
    """Pictures that the VAE encodes and decodes a second at the checkpoint's own size."""
    import torch

    for dtype, batches in ((torch.float32, bench.batches[:1]), (bench.half, bench.batches)):
        model = bench.build(dtype, bench.device)
        for kind in ("decode", "encode"):
            for count in batches:
                inputs = vae_inputs(model, kind, count)
                bench.measured(f"{kind} {count} × {model.size} px, {named(dtype)}",
                               lambda: getattr(model, kind)(inputs), count, "pictures/s", dtype,
                               group=kind, counting=kind, reference=batches is not bench.batches,
                               counted=(kind, count, dtype.itemsize))


def vae_inputs(model, kind, count):
    import torch

    latent = (model.latent_channels, model.latent_side, model.latent_side)
    return torch.randn(count, *(latent if kind == "decode" else (3, model.size, model.size)), device=model.device)


def features(bench):
    """init_latent and c: images a second in a batch against one at a time in float32, and as published."""
    import torch

    from benchmarks import _shared

    most = bench.batches[-1]
    stimuli, captions = _shared.scene_stimuli(most)
    slow = bench.build(torch.float32, bench.device)
    for model, count in ((slow, 1), (bench.build(bench.half, bench.device), most)):
        bench.measured(f"batch {count}, {named(model.dtype)}",
                       lambda: _shared.extract_features(model, stimuli[:count], captions[:count]), count, "images/s",
                       model.dtype, group="features", counting="features", reference=model is slow)
    bench.measured("as published: one at a time with 40 denoising steps, float32", lambda: _shared.extract_as_published(
        slow, stimuli[0], captions[0]), 1, "images/s", torch.float32, group="features", repeats=1)


def samples(bench):
    """Whole samples, at strength 0.8 and guidance 5, with the VAE at both ends: against one at a time in float32."""
    import torch

    from utils.generate import diffusion

    most, fewer = (10, 2) if bench.small else (diffusion.STEPS, 10)
    for dtype, count, solver, steps in ((torch.float32, 1, "ddim", most), (bench.half, bench.batches[-1], "dpm", fewer),
                                        (bench.half, bench.batches[-1], "ddim", most)):
        model = bench.build(dtype, bench.device)
        start = torch.randn(count, int(np.prod(model.latent_shape)))
        text = torch.randn(count, *model.text_shape)
        noise = torch.randn(count, model.latent_channels, model.latent_side, model.latent_side)

        def sample():
            return model.img2img(model.start_latents(start.to(model.device)), text, noise, steps=steps, solver=solver,
                                 progress=False).cpu()
        bench.measured(f"batch {count}, {named(dtype)}, {steps} steps of {solver}", sample, count, "samples/s", dtype,
                       group="samples", reference=count == 1, repeats=1)


def ridge(bench):
    """Ridge decoders at NSD's sizes, then himalaya's RidgeCV on the same device."""
    from benchmarks import ridge as against

    warnings.simplefilter("ignore")
    size = (900, 150, 768) if bench.small else (against.NSD_TRIALS, 5_917, 6_400)
    backend = "torch_cuda" if bench.device.type == "cuda" else "torch"
    for mode in ("paper", "fixed"):
        decoded(bench, *size, mode)
    for mode in ("paper", "fixed"):
        bench.forget_peak()
        seconds = float(against.measure_himalaya(*size, mode, backend, whole=False)["total"][0])
        show({"what": f"{label(*size)}, {mode}, himalaya's {backend}, scaled from a fold and a slice (reference)",
              "group": f"ridge {label(*size)} {mode}", "reference": True, "unit": "dims/s", "seconds": seconds,
              "rate": size[-1] / seconds, "peak": bench.peak()})


def ridge_large(bench):
    """The larger fits of one subject, ours alone: c from ventral, and averages of all ROIs."""
    from benchmarks import rehearsal

    sizes = [(rehearsal.TRAIN_TRIALS, rehearsal.VENTRAL, rehearsal.CONDITIONING),
             (rehearsal.TRAIN_STIMULI, rehearsal.AVERAGED, 6_400)]
    for each in [(900, 150, 900), (300, 400, 128)] if bench.small else sizes:
        decoded(bench, *each, "fixed")


def label(trials, voxels, dims):
    return f"{trials:,} × {voxels:,} × {dims:,}"


def decoded(bench, trials, voxels, dims, mode):
    """Our decoder on the device: a line of the factorisation and the first target, and one of a second target."""
    import torch

    from benchmarks import ridge as against
    from utils.ridge.ridge_decoder import Decoder

    train, stimulus, targets, test = against.simulate(trials, voxels, dims)
    size = label(trials, voxels, dims)
    line = {"what": f"{size}, {mode}", "unit": "dims/s", "group": f"ridge {size} {mode}"}
    bench.forget_peak()
    out = np.empty((len(test), dims), np.float32)
    start = time.perf_counter()
    try:
        decoder = Decoder(train, stimulus, mode=mode, alphas=against.alphas_of(mode), device=bench.device)
        decoder.predict_to(targets, test, out)
        first = time.perf_counter() - start
        show(line | {"seconds": first, "rate": dims / first, "peak": bench.peak()})
        start = time.perf_counter()
        decoder.predict_to(targets, test, out)
    except torch.OutOfMemoryError:
        show(line | {"note": "out of memory"})
        return
    second = time.perf_counter() - start
    flops = against.flops_per_dim(decoder) * dims
    show({"what": f"{line['what']}, one more target", "unit": "dims/s", "seconds": second, "rate": dims / second,
          "peak": bench.peak(), "tflops": flops / second / 1e12, "share": flops / second / bench.rate(torch.float32)})


def inversion(bench):
    """Pictures inverted a second in 200 steps, by the Caffe VGG19 and the relu7 generator: a batch against one."""
    import torch

    from benchmarks import _shared
    from utils.generate import gan_inversion
    from utils.models import loading

    steps = 2 if bench.small else 5
    if bench.small:
        os.environ["NSD_MODELS"] = "tiny"
        encoder, generator = loading.vgg19(bench.device), loading.generator(bench.device)
        shapes = encoder.shapes(gan_inversion.LAYERS)
    else:
        encoder, generator, shapes = _shared.vgg19_and_generator(bench.device)
    for count in dict.fromkeys((1, bench.batches[-1])):
        targets = {layer: torch.randn(count, *shape) for layer, shape in shapes.items()}
        bench.measured(
            f"batch {count}, float32, scaled from {steps} steps", lambda: gan_inversion.invert(
                encoder, generator, targets, torch.rand(count, len(generator.bound)), n_iter=steps),
            count, "pictures/s", torch.float32, group="inversion", reference=count == 1, repeats=1,
            scale=gan_inversion.N_ITER / steps)


def counted(bench):
    """Bytes of one and of two items on the pretended GPU: no lines of the table, but its last column."""
    import torch

    from tests import pretend_gpu
    from utils.models import loading

    dtype = loading.precision("auto", torch.device("cpu"))  # it computes on the CPU
    for kind in ("unet", "decode", "encode"):
        peaks = []
        for count in (1, 2):
            with pretend_gpu.Device("cuda") as gpu:
                model = bench.build(dtype, torch.device("cuda", 0))
                if kind == "unet":
                    unet_step(model, count)[0]()
                else:
                    getattr(model, kind)(vae_inputs(model, kind, count))
                del model
            peaks.append(gpu.peak / 2**30)
        show({"kind": kind, "one": peaks[0], "two": peaks[1], "itemsize": dtype.itemsize})


# Seconds that each may take at most; in order of what matters most.
PARTS = {"prepare": (prepare, 90), "products": (products, 30), "unet": (unet, 80), "samples": (samples, 60),
         "features": (features, 40), "vae": (vae, 40), "ridge": (ridge, 110), "inversion": (inversion, 40),
         "compiled": (compiled, 150), "counted": (counted, 70), "ridge_large": (ridge_large, 100)}


def run(part, args, seconds):
    """(lines, what went wrong or None) of a part in a process of its own, ended when its time is over."""
    command = [sys.executable, __file__, "--part", part, "--batches", *map(str, args.batches)]
    command += ["--small"] * args.small
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        try:
            status = subprocess.run(command, stdout=out, stderr=err, timeout=seconds).returncode
            fault = f"failed with exit status {status}" if status else None
        except subprocess.TimeoutExpired:
            fault = f"stopped after {seconds:.0f} s: what it had not measured is missing"
        out.seek(0)
        lines = [json.loads(line) for line in out.read().splitlines() if line.startswith("{") and line.endswith("}")]
        err.seek(0)
        said = [line for line in err.read().splitlines() if line.strip()]
    return lines, fault if not fault or "stopped" in fault else f"{fault}: {said[-1] if said else 'it said nothing'}"


def completed(parts):
    """Fill in each line's ratio and counted memory, from what all parts measured."""
    lines = [line for part, found in parts.items() if part != "counted" for line in found["lines"]]
    references = {line["group"]: line["rate"] for line in lines if line.get("reference") and line.get("rate")}
    slopes = {line["kind"]: line for line in parts.get("counted", {"lines": []})["lines"]}
    for line in lines:
        if line.get("group") in references and line.get("rate"):
            line["ratio"] = line["rate"] / references[line["group"]]
        kind, batch, itemsize = line.get("counted") or (None, None, None)
        if kind in slopes:
            one, two = slopes[kind]["one"], slopes[kind]["two"]
            line["counted_gib"] = (one + (batch - 1) * (two - one)) * itemsize / slopes[kind]["itemsize"]


def table(about, parts):
    """The Markdown of everything that was measured, and of what was not."""
    text = [f"# GPU benchmark{', REHEARSED at small size' if about['small'] else ''}", "",
            ", ".join(f"{name} {value}" for name, value in about.items() if name != "small"), "",
            "| part | what | seconds | rate | TFLOP/s | of products | ratio | peak GiB | counted GiB | |",
            "|---|---|---|---|---|---|---|---|---|---|"]
    for part, found in parts.items():
        for line in found["lines"] if part != "counted" else ():
            rate = f"{line['rate']:.4g} {line['unit']}" if line.get("rate") else "–"
            cells = [part, line["what"], _cell(line.get("seconds"), ".4g"), rate, _cell(line.get("tflops"), ".3g"),
                     _cell(line.get("share"), ".0%"), _cell(line.get("ratio"), ".3g", "×"),
                     _cell(line.get("peak"), ".2f"), _cell(line.get("counted_gib"), ".2f"), line.get("note", "")]
            text.append(f"| {' | '.join(cells)} |")
    faults = [f"- `{part}`: {found['fault']}" for part, found in parts.items() if found["fault"]]
    return "\n".join([*text, "", *(["Not measured:", "", *faults, ""] if faults else [])])


def _cell(value, how, unit=""):
    return "–" if value is None else f"{value:{how}}{unit}"


def about(small):
    """The device and the versions, from a process of its own: this one must not hold the device."""
    code = ("import json, torch; cuda = torch.cuda.is_available(); print(json.dumps({"
            "'device': torch.cuda.get_device_name() if cuda else None, "
            "'memory': f'{torch.cuda.get_device_properties(0).total_memory / 2**30:.0f} GiB' if cuda else None, "
            "'torch': torch.__version__, 'CUDA': torch.version.cuda}))")
    said = subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(said) | {"Python": platform.python_version(), "small": small}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="small models and sizes, on the CPU where there is no GPU")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="default: all")
    parser.add_argument("--batches", nargs="+", type=int, metavar="N", help="samples at once (default: 1 4 16 32; 1 2)")
    parser.add_argument("--out", type=Path, default=ROOT / ".bench", metavar="DIR",
                        help="folder of gpu.md and gpu.json (default: .bench)")
    parser.add_argument("--minutes", type=float, default=MINUTES, metavar="N",
                        help=f"time for all parts; each part's own share goes with it (default: {MINUTES})")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.batches = args.batches or ([1, 2] if args.small else [1, 4, 16, 32])
    if min(args.batches) < 1 or not args.minutes > 0:
        parser.error("--batches are at least 1, --minutes above 0")
    if args.part:
        PARTS[args.part][0](Bench(args.small, args.batches))
        return
    started, on = time.monotonic(), about(args.small)
    if on["device"] is None:
        if not args.small:
            print("GPU: there is none here, nothing measured (--small rehearses on the CPU)")
            return
        on["device"] = "CPU, no GPU: a rehearsal"
    parts = {}
    for part in args.parts:
        left = 60 * args.minutes - (time.monotonic() - started)
        if left < 5:
            parts[part] = {"lines": [], "fault": "not begun: the time was over", "seconds": 0}
        else:
            began = time.monotonic()
            lines, fault = run(part, args, min(PARTS[part][1] * args.minutes / MINUTES, left))
            parts[part] = {"lines": lines, "fault": fault, "seconds": time.monotonic() - began}
        cli.say(f"{part}: {len(parts[part]['lines'])} lines in {parts[part]['seconds']:.0f} s"
                + (f", {parts[part]['fault']}" if parts[part]["fault"] else ""))
        completed(parts)
        args.out.mkdir(parents=True, exist_ok=True)
        text_files.write_json(args.out / "gpu.json", {"about": on, "parts": parts})
        text_files.write_text(args.out / "gpu.md", table(on, parts))
    print(table(on, parts), end="")


if __name__ == "__main__":
    main()
