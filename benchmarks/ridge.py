"""Time, memory and precision of `utils.ridge` beside himalaya's RidgeCV, on simulated voxels of NSD's shapes.

    python benchmarks/ridge.py                # 8,000 trials × 2,000 voxels × 6,400 dims: minutes
    python benchmarks/ridge.py --full         # also NSD's 24,980 × 5,917 × 6,400 and × 59,136, and an extrapolation
    python benchmarks/ridge.py --averages 3000 9000      # stimulus averages alone, as VGG19's layers are decoded from
    python benchmarks/ridge.py --averages 8859 26688     # the same at NSD's size: an hour

Each row runs in its own process, so peak memory is that row's. Stimuli are shown about three times, as in NSD.
Ratios are given twice: in wall time, and in processor time, which a busy machine distorts less (with --threads 1).

himalaya is timed on one fold and a slice of dims and scaled up (--whole runs all of it): a fold's cost is a fixed
part (its SVD and one matrix per alpha) plus a part per dim, told apart by timing each batch of targets; the refit is
counted as measured on the slice, which favours himalaya.
"""
import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

N_FOLDS, N_TEST = 5, 982
NSD_TRIALS, NSD_STIMULI = 24_980, 8_859
BATCH = 256


class Clock:
    """Wall and processor seconds since the start."""

    def __init__(self):
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def __call__(self):
        return np.array([time.perf_counter() - self.wall, time.process_time() - self.cpu])


def simulate(n_trials, n_voxels, dims, folder=None, dtype=np.float32):
    """Voxels (int16) and targets that share latent causes; the targets go to an HDF5 file where a folder is given."""
    rng = np.random.default_rng(0)
    n_stimuli = round(n_trials * NSD_STIMULI / NSD_TRIALS)
    stimulus = rng.permutation(np.concatenate([np.arange(n_stimuli), rng.integers(0, n_stimuli, n_trials - n_stimuli)]))
    causes = rng.standard_normal((n_stimuli + N_TEST, 200), dtype=np.float32)
    # A spectrum that falls off as voxels' does, and trials dominated by noise.
    to_voxels = rng.standard_normal((200, n_voxels), dtype=np.float32) / np.arange(1, 201)[:, None].astype("f4") ** 0.5
    voxels = np.empty((n_trials, n_voxels), dtype=np.int16)
    for rows in np.array_split(np.arange(n_trials), max(1, n_trials // 1000)):
        noise = rng.standard_normal((len(rows), n_voxels), dtype=np.float32)
        voxels[rows] = 100 * (causes[stimulus[rows]] @ to_voxels + 3 * noise)
    test = 100 * (causes[n_stimuli:] @ to_voxels + 1.7 * rng.standard_normal((N_TEST, n_voxels), dtype=np.float32))
    if folder is None:
        features = np.empty((n_stimuli, dims), dtype=dtype)
    else:
        import h5py
        features = h5py.File(Path(folder) / "features.h5", "w").create_dataset(
            "features", (n_stimuli, dims), dtype=dtype, chunks=(n_stimuli, 64))
    for start in range(0, dims, 512):
        width = min(512, dims - start)
        weights = rng.standard_normal((200, width), dtype=np.float32)
        noise = rng.standard_normal((n_stimuli, width), dtype=np.float32)
        features[:, start:start + width] = causes[:n_stimuli] @ weights + 10 * noise + 5
    return voxels, stimulus, features, test


def alphas_of(mode):
    from utils.ridge.penalties import FIXED_ALPHAS, paper_alphas
    return FIXED_ALPHAS if mode == "fixed" else paper_alphas("c")


def measure_ours(n_trials, n_voxels, dims, mode, check, on_disk):
    from utils.ridge.ridge_decoder import Decoder
    with tempfile.TemporaryDirectory() as folder:
        voxels, stimulus, features, test = simulate(n_trials, n_voxels, dims, folder if on_disk else None,
                                                    np.float16 if on_disk else np.float32)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        out = np.lib.format.open_memmap(Path(folder) / "out.npy", "w+", np.float32, (N_TEST, dims))
        clock = Clock()
        decoder = Decoder(voxels, stimulus, mode=mode, alphas=alphas_of(mode), n_folds=N_FOLDS)
        report = decoder.predict_to(features, test, out)
        total = clock()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        result = {"total": total.tolist(), "peak_mb": peak / 1024, "before_mb": before / 1024,
                  "alphas": report.summary()["alphas"]}
        # A second target finds the voxels factorised: its time is products alone.
        again = features if not on_disk else features[:, :2048]
        clock = Clock()
        decoder.predict_to(again, test, np.empty((N_TEST, again.shape[1]), np.float32))
        second = clock()
        result["second"] = (second * dims / again.shape[1]).tolist()
        result["gflops"] = flops_per_dim(decoder) * again.shape[1] / second / 1e9
        result["gflops"] = result["gflops"].tolist()
        if check:
            result |= precision(voxels, stimulus, features, test, mode, decoder, report, out)
    return result


def flops_per_dim(decoder):
    """Floating-point operations of one target dim once the voxels are factorised (products only)."""
    return 2 * (N_TEST * decoder.n_stimuli + decoder.scorer(decoder.alphas).macs())


def measure_averages(n_stimuli, n_voxels, dims, mode, forms):
    """Stimulus averages, more voxels than rows: the first target with all that is made once, and the next.

    forms: whether losses are quadratic forms, or every fold is factorised by itself (the way before forms, which still
    serves where they would be dearer or less precise).
    """
    from utils.ridge import loss_forms
    from utils.ridge.ridge_decoder import Decoder

    rng = np.random.default_rng(0)
    signal = rng.standard_normal((n_stimuli + N_TEST, 64), np.float32)
    voxels = signal @ rng.standard_normal((64, n_voxels), np.float32)
    for rows in np.array_split(voxels, 16):
        rows += 5 * rng.standard_normal(rows.shape, np.float32)
    features = signal[:n_stimuli] @ rng.standard_normal((64, dims), np.float32)
    features += 10 * rng.standard_normal(features.shape, np.float32) + 3
    if not forms:
        loss_forms.build = lambda decoder, alphas: None
    from utils.ridge.penalties import FIXED_ALPHAS, paper_alphas
    out, few = np.empty((N_TEST, dims), np.float32), min(dims, 64)
    clock = Clock()
    decoder = Decoder(voxels[:n_stimuli], np.arange(n_stimuli), mode=mode,
                      alphas=FIXED_ALPHAS if mode == "fixed" else paper_alphas("conv1_1"))
    decoder.predict_to(features[:, :few], voxels[n_stimuli:], out[:, :few])
    first, clock = clock(), Clock()
    report = decoder.predict_to(features, voxels[n_stimuli:], out)
    return {"first": first.tolist(), "second": clock().tolist(), "macs": decoder.scorer(decoder.alphas).macs(),
            "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            "scores": report.cv_scores.tolist(), "alphas": report.alphas.tolist()}


def precision(voxels, stimulus, features, test, mode, decoder, report, out, n_checked=16):
    """Against float64 normal equations, on a few dims: the largest error in sd, and the share of equal alphas."""
    dims = np.linspace(0, features.shape[1] - 1, n_checked).astype(int)
    raw = voxels.astype(np.float64)
    scale = raw.std(0)
    x, x_test = (raw - raw.mean(0)) / scale, (test - raw.mean(0)) / scale
    del raw
    y = np.stack([features[:, d] for d in dims], 1).astype(np.float64)[stimulus]
    alphas, centre = alphas_of(mode), mode == "fixed"

    def fit(training, held_out):
        mean_x, mean_y = (x[training].mean(0), y[training].mean(0)) if centre else (0, 0)
        xc, yc = x[training] - mean_x, y[training] - mean_y
        values, vectors = np.linalg.eigh(xc.T @ xc)
        left, right = (held_out - mean_x) @ vectors, vectors.T @ (xc.T @ yc)
        return [left @ (right / (values + alpha)[:, None]) + mean_y for alpha in alphas]

    everything, losses = np.arange(len(x)), np.zeros((len(alphas), n_checked))
    for validation in decoder.validation_trials:
        predictions = fit(np.setdiff1d(everything, validation), x[validation])
        losses += [((y[validation] - p) ** 2).mean(0) for p in predictions]
    best = np.argmin(losses, 0)
    chosen = np.searchsorted(alphas, report.alphas[dims] * (1 - 1e-9))
    # Alphas whose float64 losses differ by rounding only are not told apart.
    columns = np.arange(n_checked)
    equal = losses[chosen, columns] <= losses[best, columns] * (1 + 1e-10)
    expected = np.array(fit(everything, x_test))[chosen, :, columns].T
    return {"error_sd": float((np.abs(out[:, dims] - expected) / y.std(0)).max()), "equal_alphas": float(equal.mean())}


def measure_himalaya(n_trials, n_voxels, dims, mode, backend, whole):
    from himalaya.backend import set_backend
    from himalaya.ridge import RidgeCV
    from himalaya.scoring import l2_neg_loss
    from sklearn.model_selection import KFold
    from sklearn.preprocessing import StandardScaler
    warnings.simplefilter("ignore")
    set_backend(backend)
    slice_dims = dims if whole else 3 * BATCH
    voxels, stimulus, features, test = simulate(n_trials, n_voxels, slice_dims)
    targets = features[stimulus]
    exits = []

    def timed_loss(truth, predictions):
        loss = l2_neg_loss(truth, predictions)
        float(loss.sum())  # a GPU works behind one's back: wait for it
        exits.append(clock())
        return loss

    # One alpha's matrix at a time needs less memory and the same arithmetic.
    params = dict(n_alphas_batch=1, warn=False)
    folds = N_FOLDS
    if not whole:
        folds = [next(KFold(N_FOLDS).split(voxels))]
        params |= dict(score_func=timed_loss, n_targets_batch=BATCH)
    clock = Clock()
    x = StandardScaler().fit_transform(voxels.astype(np.float32))
    model = RidgeCV(alphas=alphas_of(mode), cv=folds, fit_intercept=mode == "fixed", solver_params=params)
    model.fit(x, targets)
    total = clock()
    if not whole:
        # Every third call begins an alpha and includes its matrix; the other two are products with targets alone.
        marks = np.array(exits)
        steps = np.diff(marks, axis=0)
        per_batch = np.mean([step for i, step in enumerate(steps, 1) if i % 3], axis=0)
        per_fold = marks[-1] - len(exits) * per_batch + len(exits) / 3 * per_batch * dims / BATCH
        total = N_FOLDS * per_fold + (total - marks[-1])
    return {"total": total.tolist()}


def gemm_peak():
    """GFLOP/s per processor second of single-precision products that fit no cache: PyTorch's own, and the engine's."""
    import torch

    from utils.ridge.products import product as engine
    a = torch.randn(3000, 3000)
    rates = []
    for product in (torch.mm, engine):
        product(a, a)
        clock = Clock()
        for _ in range(4):
            product(a, a)
        rates.append(4 * 2 * 3000 ** 3 / clock()[1] / 1e9)
    return rates


def child(threads, **call):
    """Run one measurement in its own process and return its dict."""
    environment = dict(os.environ, OMP_NUM_THREADS=str(threads), OPENBLAS_NUM_THREADS=str(threads))
    run = subprocess.run([sys.executable, __file__, "--measure", json.dumps(call)], env=environment,
                         stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(run.stdout.splitlines()[-1])


def measure(call):
    name = call.pop("name")
    return {"ours": measure_ours, "himalaya": measure_himalaya, "averages": measure_averages,
            "peak": gemm_peak}[name](**call)


def row(args, shape, mode, check, peak, compare=True, on_disk=False):
    n_trials, n_voxels, dims = shape
    call = dict(n_trials=n_trials, n_voxels=n_voxels, dims=dims, mode=mode)
    ours = child(args.threads, name="ours", check=check, on_disk=on_disk, **call)
    theirs = child(args.threads, name="himalaya", backend=args.backend, whole=args.whole, **call) if compare else None
    label = f"{n_trials:,} × {n_voxels:,} × {dims:,}"
    alphas = f"{len(alphas_of(mode))} ({mode})"
    other = f"{theirs['total'][0]:9.1f} {theirs['total'][1]:9.1f}" if compare else f"{'—':>9} {'—':>9}"
    ratio = f"{'—':>8}{'—':>8}"
    if compare:
        ratio = "".join(f"{t / o:7.1f}×" for t, o in zip(theirs["total"], ours["total"]))
    error = f"{ours['error_sd']:9.1e} {ours['equal_alphas']:6.0%}" if check else f"{'—':>9} {'—':>6}"
    print(f"{label:26} {alphas:10} {ours['total'][0]:8.1f} {ours['total'][1]:8.1f} {ours['second'][0]:8.1f} "
          f"{other} {ratio} {ours['peak_mb']:7.0f} {error} {ours['gflops'][1] / peak[1]:6.0%}", flush=True)
    return ours


def averages(args):
    """Both ways of scoring alphas on stimulus averages, and what the targets of whole NSD would take at this size."""
    from benchmarks.rehearsal import DPT, VGG19_DIMS
    n_stimuli, n_voxels = args.averages
    dims = 1_024
    print(f"{n_stimuli:,} averages × {n_voxels:,} voxels, {dims:,} dims; {args.threads} threads\n"
          f"{'alphas':12} {'losses':12} {'first s':>8} {'cpu s':>8} {'again s':>8} {'cpu s':>8} {'MACs/n²':>8}"
          f" {'peak MB':>8} {'DPT h':>6} {'VGG19 h':>8}")
    for mode, name in (("fixed", "10 (fixed)"), ("paper", "3 (paper)")):
        folds, forms = [child(args.threads, name="averages", n_stimuli=n_stimuli, n_voxels=n_voxels, dims=dims,
                              mode=mode, forms=way) for way in (False, True)]
        hours = {}
        for way, found in (("by fold", folds), ("as forms", forms)):
            hours[way] = [(found["first"][0] + found["second"][0] * of / dims) / 3600 for of in (DPT, VGG19_DIMS)]
            print(f"{name:12} {way:12} {found['first'][0]:8.1f} {found['first'][1]:8.1f} {found['second'][0]:8.1f} "
                  f"{found['second'][1]:8.1f} {found['macs'] / n_stimuli ** 2:8.2f} {found['peak_mb']:8.0f} "
                  f"{hours[way][0]:6.2f} {hours[way][1]:8.2f}", flush=True)
        scores = np.array([folds["scores"], forms["scores"]])
        print(f"{name:12} ratio: DPT {hours['by fold'][0] / hours['as forms'][0]:.1f}×, "
              f"VGG19 {hours['by fold'][1] / hours['as forms'][1]:.1f}×; cv scores differ by at most "
              f"{np.abs(scores[1] / scores[0] - 1).max():.0e} of themselves, "
              f"{np.mean(np.array(folds['alphas']) == forms['alphas']):.1%} of alphas are the same", flush=True)


def extrapolate(args):
    """All ROIs on one VGG19 layer, (24,980, 27,638, 590,848), from an eighth of its trials and voxels."""
    scale, dims = 8, 2048
    ours = child(args.threads, name="ours", n_trials=NSD_TRIALS // scale, n_voxels=27_638 // scale, dims=dims,
                 mode="fixed", check=False, on_disk=False)
    factorise = (np.array(ours["total"]) - ours["second"])[1] * scale ** 3 / 3600
    targets = ours["second"][1] * scale ** 2 * 590_848 / dims / 3600
    print(f"24,980 × 27,638 × 590,848, extrapolated from 1/{scale} of its trials and voxels and {dims:,} dims: "
          f"{factorise:.1f} processor hours to factorise once, {targets:.0f} for the targets.\n"
          "Factorising is bound by the eigenvectors of five 20,000-trial kernels and needs about 20 GB; the targets "
          "are bound by the matrix-product rate. Stimulus averages (8,859 rows, `ave`, as VGG19 targets use) cut both "
          f"by {(NSD_TRIALS / NSD_STIMULI) ** 3:.0f}× and {(NSD_TRIALS / NSD_STIMULI) ** 2:.0f}×.")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="NSD's own sizes too (about an hour)")
    parser.add_argument("--averages", type=int, nargs=2, metavar=("STIMULI", "VOXELS"),
                        help="only stimulus averages of this shape, scored fold by fold and as quadratic forms")
    parser.add_argument("--whole", action="store_true", help="run all of himalaya instead of scaling a slice")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of both sides (default: all)")
    parser.add_argument("--backend", choices=["numpy", "torch"], help="himalaya's backend (default: the faster here)")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(json.loads(args.measure))))
        return
    if args.averages:
        averages(args)
        return
    if args.backend is None:
        small = dict(name="himalaya", n_trials=4000, n_voxels=1000, dims=6400, mode="paper", whole=False)
        seconds = {b: child(args.threads, backend=b, **small)["total"][1] for b in ("numpy", "torch")}
        args.backend = min(seconds, key=seconds.get)
    peak = child(args.threads, name="peak")
    from utils.ridge import products
    print(f"products: {products.engine()}")
    print(f"{args.threads} threads; himalaya with its {args.backend} backend"
          f"{'' if args.whole else ', scaled from a slice'}; "
          f"matrix products reach {peak[0]:.0f} (PyTorch's own) and {peak[1]:.0f} (ours) GFLOP/s per processor second")
    print(f"{'trials × voxels × dims':26} {'alphas':10} {'ours s':>8} {'cpu s':>8} {'again s':>8} "
          f"{'himalaya':>9} {'cpu s':>9} {'ratio':>8}{'cpu':>8} {'peak MB':>7} "
          f"{'error sd':>9} {'alpha=':>6} {'peak':>6}")
    for mode in ("paper", "fixed"):
        row(args, (8_000, 2_000, 6_400), mode, True, peak)
    if args.full:
        for mode in ("paper", "fixed"):
            row(args, (NSD_TRIALS, 5_917, 6_400), mode, False, peak)
        row(args, (NSD_TRIALS, 5_917, 59_136), "fixed", False, peak, compare=False, on_disk=True)
        extrapolate(args)
    print("again: one more target on the same voxels. error sd, alpha=: 16 dims against a float64 reference. "
          "peak: products' rate as a share of what large ones reach.")


if __name__ == "__main__":
    main()
