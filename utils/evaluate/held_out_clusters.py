"""Does decoding go beyond picking among the training set's clusters? Decoders refitted without a test image's cluster.

Shirakawa et al., "Spurious reconstruction from brain activity" (2024), show that where test images fall into clusters
that the training images have too, a decoder that merely finds the cluster scores high, and a generator makes it look
right. So the stimuli are clustered (k-means), and for each cluster the decoder is fitted again without the training
stimuli in it, and identifies the cluster's test images. What to read off, beside the decoder that saw all:

* among the cluster's own test images: what stays above chance was not learnt from stimuli of that cluster;
* among all test images: chance or below says that the decoder sends what it has not seen to the clusters it has;
* after random removal, of as many training stimuli from the other clusters: how much of a drop is lost data, not kind.

It cannot tell that decoding is faithful: clusters are as many as asked for, stimuli near their edges stay in training,
and the intervals, over test images, do not cover another draw of clusters.
"""
import contextlib
from dataclasses import dataclass

import numpy as np

from utils import cli, layout, lazy, memory
from utils.errors import Problem
from utils.evaluate import identification
from utils.generate import reconstruction
from utils.nsd import trials
from utils.ridge import decoded_features, fit_targets, penalties, ridge_decoder
from utils.storage import arrays, provenance, text_files

sklearn = lazy.module("sklearn")

SCRIPT = "evaluate.py --held_out_clusters"
FIELDS = ("target", "roi", "cluster", "n_test", "n_train_removed", "metric", "full", "held_out", "drop", "low", "high")
METRICS = ("identification within cluster", "identification among all")
AT_RANDOM = " (random removal)"
CLUSTER_DIMS = 256  # wider features are projected to so many before k-means; distances keep within a few percent
BLOCK_DIMS = 4096  # dims read at once
_PROJECT, _REMOVE = 3, 4  # streams of randomness


@dataclass(frozen=True)
class Clusters:
    """k-means of a subject's stimuli. train (n_train,), test (n_test,): cluster of each stimulus, 0 … count - 1.

    distance: (n_train, count) of each training stimulus from each cluster's centre.
    """

    train: np.ndarray
    test: np.ndarray
    distance: np.ndarray

    @property
    def count(self):
        return self.distance.shape[1]

    def removed(self, cluster, share=None):
        """(n_train,) bool: the training stimuli that a cluster's decoder must not see.

        share None: those of the cluster; else that share of all training stimuli, the nearest to its centre.
        """
        if share is None:
            return self.train == cluster
        chosen = np.zeros(len(self.train), bool)
        chosen[np.argsort(self.distance[:, cluster], kind="stable")[:round(share * len(chosen))]] = True
        return chosen


def find_clusters(train, test, count, seed):
    """Clusters of the stimuli. train (n_train, dims), test (n_test, dims): features, arrays or h5py datasets."""
    dims = train.shape[1]
    random = np.random.default_rng((seed, _PROJECT))
    if dims <= CLUSTER_DIMS:
        points = np.concatenate([train[:], test[:]]).astype(np.float64)
    else:
        points = np.zeros((len(train) + len(test), CLUSTER_DIMS))
        for start in range(0, dims, BLOCK_DIMS):
            block = slice(start, min(start + BLOCK_DIMS, dims))
            directions = random.standard_normal((block.stop - start, CLUSTER_DIMS)) / np.sqrt(CLUSTER_DIMS)
            points += np.concatenate([train[:, block], test[:, block]]).astype(np.float64) @ directions
    if len(np.unique(points, axis=0)) < count:
        raise Problem(f"{count} clusters asked, but fewer stimuli differ", "ask for fewer --held_out_clusters")
    model = sklearn.cluster.KMeans(count, n_init=10, random_state=seed).fit(points)
    return Clusters(model.labels_[:len(train)], model.labels_[len(train):], model.transform(points[:len(train)]))


class Rows:
    """Some rows of a feature matrix (stimuli, dims), read a block of dims at a time. kept: (stimuli,) bool."""

    def __init__(self, features, kept):
        self._features, self._kept = features, kept
        self.shape = (int(kept.sum()), features.shape[1])

    def __getitem__(self, key):
        _, dims = key
        return self._features[:, dims][self._kept]


def predict(voxels, rows, features, kept, test_voxels, *, mode="fixed", alphas=penalties.FIXED_ALPHAS, device="cpu"):
    """(n_test, dims) float32 predictions of a decoder that saw the training stimuli `kept` and no other.

    voxels (trials, n_voxels), rows (trials,) the stimulus of each trial, features (stimuli, dims), kept (stimuli,)
    bool, test_voxels (n_test, n_voxels). Voxels are standardised, and alphas chosen, without the others too.
    """
    seen = kept[rows]
    new_row = np.cumsum(kept) - 1
    decoder = ridge_decoder.Decoder(voxels[seen], new_row[rows[seen]], mode=mode, alphas=alphas, device=device,
                                    n_stimuli=int(kept.sum()))
    out = np.empty((len(test_voxels), features.shape[1]), np.float32)
    decoder.predict_to(Rows(features, kept), test_voxels, out)
    return out


def correlations(predictions, truth, centre):
    """(n_test, n_test) r of decoded with true features, each (n_test, dims), less the training stimuli's mean, (dims,),
    which would dominate r."""
    return identification.correlations(range(len(truth)), lambda i: predictions[i] - centre,
                                       lambda j: truth[j:j + 1] - centre)


def scores(r, members):
    """{metric of METRICS: (members,) share of right choices} of a cluster's test images, by `correlations`.

    members: positions of the cluster's test images. A decoded feature is compared with the true ones of all candidates:
    the share that correlates less than its own, ties one half. Within a cluster it takes two images.
    """
    among_all = identification.accuracy(r)[members]
    within = identification.accuracy(r[np.ix_(members, members)]) if len(members) > 1 else np.empty(0)
    return dict(zip(METRICS, (within, among_all)))


def table(target, roi, clusters, share, seed, full, refit, truth, centre, progress=lambda: None):
    """Rows (dicts of FIELDS; identification and its drop in percent) of one target, cluster by cluster and pooled.

    full (n_test, dims): the predictions of the decoder that saw all; refit(kept) → those of one that saw only the
    training stimuli `kept` (n_train,) bool. low, high: 95% interval of the drop over test images, each with itself. In
    the pooled rows (cluster "all") n_train_removed is the mean over clusters.
    """
    rows, pooled, of_full = [], {}, correlations(full, truth, centre)
    for cluster in range(clusters.count):
        members, removed = np.flatnonzero(clusters.test == cluster), clusters.removed(cluster, share)
        if len(members) and removed.any():
            before = scores(of_full, members)
            versions = {"": scores(correlations(refit(~removed), truth, centre), members)}
            others = np.flatnonzero(~removed)
            if len(others) > removed.sum():
                kept = np.ones(len(removed), bool)
                random = np.random.default_rng((seed, _REMOVE, cluster))
                kept[random.choice(others, removed.sum(), replace=False)] = False
                versions[AT_RANDOM] = scores(correlations(refit(kept), truth, centre), members)
            for suffix, after in versions.items():
                for metric in (metric for metric in METRICS if len(before[metric])):
                    found = (int(removed.sum()), before[metric], after[metric])
                    rows.append(_row(target, roi, cluster, metric + suffix, seed, *found))
                    pooled.setdefault(metric + suffix, []).append(found)
        progress()
    for metric, parts in pooled.items():
        counts, before, after = zip(*parts)
        rows.append(_row(target, roi, "all", metric, seed, round(np.mean(counts)), np.concatenate(before),
                         np.concatenate(after)))
    return rows


def _row(target, roi, cluster, metric, seed, n_removed, before, after):
    low, high = identification.interval(before - after, seed)
    numbers = (100 * float(each) for each in (before.mean(), after.mean(), (before - after).mean(), low, high))
    return dict(zip(FIELDS, (target, roi, cluster, len(before), n_removed, metric, *numbers)))


def add_arguments(parser):
    """The flags that ask for the check."""
    parser.add_argument("--held_out_clusters", type=int, default=0, metavar="K",
                        help="also refit decoders without each of K clusters of training stimuli (default: not done)")
    parser.add_argument("--held_out_share", type=float, metavar="S",
                        help="leave out the share S of training stimuli nearest to the cluster's centre "
                        "(default: the cluster's own)")
    parser.add_argument("--held_out_targets", nargs="+", default=list(reconstruction.ROI_OF), metavar="FEATURE",
                        help=f"decoded features to check (default: {' '.join(reconstruction.ROI_OF)})")
    parser.add_argument("--cluster_on", default="c", metavar="FEATURE",
                        help="feature that k-means clusters by (default: c)")


def check_arguments(parser, args):
    """Usage errors of add_arguments' flags."""
    if args.held_out_clusters < 0 or args.held_out_clusters == 1:
        parser.error("--held_out_clusters must be at least 2")
    if args.held_out_share is not None and not 0 < args.held_out_share < 1:
        parser.error("--held_out_share must be between 0 and 1")


def run(args, ws, device):
    """(rows of every target, record) for the table, or (None, record) if it is there already."""
    rois = {target: reconstruction.ROI_OF.get(target) for target in args.held_out_targets}
    rois = {target: [roi] if roi else list(decoded_features.ROIS) for target, roi in rois.items()}
    full = {target: ws.scores(roi, target) for target, roi in rois.items()}
    with contextlib.ExitStack() as stack:
        features = {target: stack.enter_context(fit_targets.open_features(ws, "each", target, "original"))
                    for target in dict.fromkeys([*rois, args.cluster_on])}
        voxels = {target: trials.load_voxels(ws, roi) for target, roi in rois.items()}
        predictions = {target: arrays.read_npy(path, made_by=f"ridge.py --subject {ws.subject} --target {target} "
                                               f"--roi {' '.join(rois[target])}") for target, path in full.items()}
        inputs = {*full.values(), *(ws.betas(tag, split, average) for roi in rois.values() for tag in roi
                                    for split, average in (("tr", False), ("te", True)))}
        options = {"clusters": args.held_out_clusters, "share": args.held_out_share, "targets": rois,
                   "cluster_on": args.cluster_on, "seed": args.seed}
        wanted = provenance.record(SCRIPT, options, sorted(inputs | {matrix.path for matrix in features.values()}))
        if provenance.is_done(ws.evaluation_result("held_out", "csv"), wanted, args.overwrite):
            return None, wanted
        for target in features:
            for each in voxels.values():
                fit_targets.check_pairing(features[target], each)
        clusters = find_clusters(*(features[args.cluster_on].features(split) for split in trials.SPLITS),
                                 args.held_out_clusters, args.seed)
        rows = []
        with cli.progress(desc="held-out clusters", total=len(rois) * clusters.count, unit="cluster") as bar:
            for target, roi in rois.items():
                fitted = text_files.read_json(layout.sidecar(full[target]))["options"]
                rows += _of_target(target, "_".join(roi), clusters, args, features[target], voxels[target], fitted,
                                   predictions[target], device, bar.update)
    return rows, wanted


def _of_target(target, roi, clusters, args, matrix, voxels, fitted, full, device, progress):
    """As `table`. fitted: the options of the decoder that saw all, which the others are fitted with too."""
    train, truth = matrix.features("tr"), matrix.features("te")[:].astype(np.float32)
    if full.shape != truth.shape:
        raise Problem(f"decoded {target} is {full.shape}, the true one {truth.shape}",
                      "run ridge.py again with --overwrite")
    each = fitted["use_stim"] == "each"
    activity = voxels.train if each else voxels.train_average
    rows = voxels.train_rows if each else np.arange(len(voxels.train_stimuli))
    device = memory.ridge_device(device, *activity.shape)

    def refit(kept):
        return predict(activity, rows, train, kept, voxels.test, mode=fitted["mode"], alphas=fitted["alphas"],
                       device=device)

    centre = np.concatenate([train[:, start:start + BLOCK_DIMS].mean(axis=0, dtype=np.float64)
                             for start in range(0, train.shape[1], BLOCK_DIMS)])
    return table(target, roi, clusters, args.held_out_share, args.seed, full, refit, truth, centre, progress)
