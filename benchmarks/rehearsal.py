"""A run of the pipeline at NSD's true shapes on this machine: every step of its plan measured on a slice and projected.

    python benchmarks/rehearsal.py --preset night    # one subject, CVPR method, whole and occluded: 12 minutes
    python benchmarks/rehearsal.py --methods cvpr text gan depth --datasets nsd

Writes SD 1.4's architecture to .bench (2 GB). Inputs are synthetic and the networks' weights random; sizes are subj01's
of the paper's 37 sessions. NSD comes over a loopback link of 100 Mbit/s and 40 ms. Beside each projection stands what
`run_pipeline.py --check` says of the step, from its own short probes and with the slices unseen, and the ratio of the
two. The last columns are NOT measured: --check's estimate at other speeds of the networks (--tflops).
"""
import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import run_pipeline  # noqa: E402
from benchmarks import _shared, _stages  # noqa: E402
from utils import layout  # noqa: E402
from utils.models import architectures  # noqa: E402
from utils.nsd import ranges  # noqa: E402
from utils.pipeline import check, costs, machine, presets, stages, study  # noqa: E402

LINK = {"latency": 0.04, "rate": 20e6 / 8, "total": 100e6 / 8}
BARS = {"time": 12 * 3600, "network": 16e9, "disk": 25e9, "memory": 6e9}  # of --preset night


def plan_of(flags):
    """[(command, parsed arguments)] of run_pipeline.py with some flags."""
    args = run_pipeline.arguments(["run_pipeline.py", "--subject", "subj01", "--gpu", "-1", *flags])
    presets.apply(args)
    return [(command, run_pipeline.arguments(command)) for command in stages.plan(args)]


def key(command, args):
    """What two steps must have in common for one measurement to serve both."""
    kind = stages.KIND[command[0]]
    if kind == "ridge":
        return kind, tuple(target.removesuffix("_occluded") for target in args.target), tuple(args.roi)
    return (kind, args.featname.removesuffix("_occluded")) if kind == "pair" else (kind,)


def link():
    found = ranges.Link()
    found.latency, found.rate, found.total = LINK["latency"], LINK["rate"], LINK["total"]
    return found


def measured(flags, number):
    """{kind: _stages.Measured} of a step of the plan, in a process of its own, so that its peak is its own."""
    done = subprocess.run([sys.executable, __file__, "--flags", json.dumps(flags), "--step", str(number)], check=True,
                          stdout=subprocess.PIPE, text=True, env=os.environ | {"NSD_MODELS": "hub"})
    return {kind: _stages.Measured(**found) for kind, found in json.loads(done.stdout.splitlines()[-1]).items()}


def measure(flags, number):
    plan = plan_of(flags)
    command, args = plan[number]
    function = _stages.MEASURES[stages.KIND[command[0]]]
    runs = [each for command, each in plan if stages.KIND[command[0]] == "images"]
    samples = runs[0].n_samples
    more = {_stages.evaluate: [samples, len(runs)]} | {each: [samples] for each in _stages.OF_SAMPLES}
    found = function(args, study.Study(), *more.get(function, []))
    for each in found.values():
        each.peak = each.peak or peak_mib()
    print(json.dumps({kind: dataclasses.asdict(each) for kind, each in found.items()}))


def peak_mib():
    """Peak resident memory of this process (ru_maxrss would carry over the parent's)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=presets.PRESETS, default="night", help="default: night")
    parser.add_argument("--methods", nargs="+", choices=layout.METHODS, default=["cvpr"], help="default: cvpr")
    parser.add_argument("--datasets", nargs="+", choices=layout.DATASETS, default=list(layout.DATASETS),
                        help="default: both")
    parser.add_argument("--tflops", type=float, nargs="+", default=[0.44, 40], metavar="N",
                        help="speeds of the networks, 1e12 operations a second, at which the last columns are "
                        "estimated (default: 0.44, two cores with native bfloat16; 40, a GPU, assumed)")
    parser.add_argument("--flags", help=argparse.SUPPRESS)
    parser.add_argument("--step", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.step is not None:
        measure(json.loads(args.flags), args.step)
        return
    os.environ["NSD_MODELS"] = "hub"
    _shared.write_real()
    flags = ["--preset", args.preset, "--methods", *args.methods, "--datasets", *args.datasets]
    plan, here = plan_of(flags), machine.probe(tempfile.gettempdir(), -1)
    at = link()
    one = study.assumed(at, "the benchmark")
    priced = {speed: costs.Costs(one, here if speed is None else dataclasses.replace(here, network=speed * 1e12), at,
                                 False, plan) for speed in (None, *args.tflops)}
    print(f"{here.cores} cores, {here.dtype}: a UNet step at {here.network / 1e9:,.0f} GFLOP/s, products at "
          f"{here.float32 / 1e9:,.0f} (float32), {here.float64 / 1e9:,.0f} (float64)\n")
    print(f"{'step':<44}{'measured':<38}{'took':>9}{'peak':>9}{'projected':>11}{'--check':>10}{'ratio':>7}{'peak':>9}"
          f"{'network':>9}{'disk':>9}" + "".join(f"{f'at {speed:g} T':>10}" for speed in args.tflops), flush=True)
    known, total = {}, {"time": 0, "check": 0, "network": 0, "disk": 0, "memory": 0} | dict.fromkeys(args.tflops, 0)
    for number, (command, parsed) in enumerate(plan):
        same = key(command, parsed)
        if same not in known and same[0] in _stages.MEASURES:
            for kind, found in measured(flags, number).items():
                known[(kind, *same[1:])] = found
        found, cost = known.get(same), priced[None].of(command, parsed)
        seconds = cost.seconds if found is None else found.projected
        taken = (f"{'not measured':<38}{'':>9}{'':>9}{'':>11}" if found is None else
                 f"{found.what:<38}{check.duration(found.took):>9}{found.peak / 1024:>6.1f}GiB"
                 f"{check.duration(seconds):>11}")
        other = {speed: priced[speed].of(command, parsed).seconds for speed in args.tflops}
        ratio = "" if found is None else f"{cost.seconds / seconds:.2f}"
        print(f"{command[0]:<44}{taken}{check.duration(cost.seconds):>10}{ratio:>7}{cost.memory / 2 ** 30:>6.1f}GiB"
              f"{cost.network / 1e9:>7.2f}GB{cost.disk / 1e9:>7.2f}GB"
              + "".join(f"{check.duration(each):>10}" for each in other.values()), flush=True)
        for name, value in (("time", seconds), ("check", cost.seconds), ("network", cost.network),
                            ("disk", cost.disk), *other.items()):
            total[name] += value
        total["memory"] = max(total["memory"], cost.memory, 0 if found is None else found.peak * 2 ** 20)
    files = sum(architectures.FILES[role] for role in dict.fromkeys(
        role for each in plan for role in check.roles(*each)) if role in architectures.FILES)
    fetched = files / at.total
    print(f"{'checkpoints':<44}{'their sizes':<38}{'':>9}{'':>9}{check.duration(fetched):>11}"
          f"{check.duration(fetched):>10}{'':>16}{files / 1e9:>7.2f}GB{files / 1e9:>7.2f}GB")
    for name in ("time", "check", *args.tflops):
        total[name] += fetched
    total["network"] += files
    total["disk"] += files
    print(f"{'all':<44}{'':<38}{'':>18}{check.duration(total['time']):>11}{check.duration(total['check']):>10}{'':>7}"
          f"{total['memory'] / 2 ** 30:>6.1f}GiB{total['network'] / 1e9:>7.2f}GB{total['disk'] / 1e9:>7.2f}GB"
          + "".join(f"{check.duration(total[speed]):>10}" for speed in args.tflops))
    if args.preset == "night":
        print(f"bars of a night: {check.duration(BARS['time'])}, {BARS['network'] / 1e9:g} GB network, "
              f"{BARS['disk'] / 1e9:g} GB disk, {BARS['memory'] / 1e9:g} GB memory")


if __name__ == "__main__":
    main()
