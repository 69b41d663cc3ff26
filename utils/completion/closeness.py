"""What is decoded inside the hidden region: is it closer to the truth than to what else it could resemble?

The direct comparison. For each view, the Pearson correlation over the hidden dims (features standardised over the
training pictures) of what was decoded with

    truth       the hidden content of its own scene
    occluder    the same dims of the picture as shown: the occluder in front; for `objects`, what is in view
    context     what a model without a brain predicts of them from the visible part
    others      the hidden content of each other scene behind the same mask, averaged over these

and the differences of the first from each other, with intervals over images. It is told beside the index and not
instead of it, because a decoder that learned how the parts of a picture go together fills the hidden part from the
visible one by itself: truth beats occluder and others without any completion, and noise alone lets context beat truth
(docs/amodal_completion.md, with numbers).
"""
import numpy as np

from utils.completion import completion_index

REFERENCES = ("truth", "occluder", "context", "others")
FEWEST_DIMS = 3         # over which a correlation says anything
FIELDS = ("views", "images", *REFERENCES,
          *(f"over_{name}{end}" for name in REFERENCES[1:] for end in ("", "_low", "_high")))


def correlations(material, feature, views, decoded, context=None):
    """((k,) views that are compared, (k, 4) correlations with REFERENCES, NaN for one that is not known).

    views (n,): numbers of views; decoded (n, d): their feature, standardised as material's. context (n, d): what was
    predicted without a brain, default `material.guess`. Compared are the views that have an axis: those that hide no
    object wholly, behind a mask that MIN_GROUP of them share.
    """
    at = {int(view): row for row, view in enumerate(views)}
    truth, shown = material.features[feature][1], material.as_shown.get(feature)
    compared, rows = [], []
    for axis in material.axes[feature]:
        here = [int(view) for view in axis.rows if int(view) in at]
        if not here or len(axis.dims) < FEWEST_DIMS:
            continue
        seen = decoded[[at[view] for view in here]][:, axis.dims]
        guess = material.guess[feature][here] if context is None else context[[at[view] for view in here]]
        images = material.views.rows[axis.rows]
        with_truths = completion_index.row_correlations(seen, truth[images][:, axis.dims])
        own = with_truths[np.arange(len(here)), [int(np.flatnonzero(axis.rows == view)[0]) for view in here]]
        occluder = np.full(len(here), np.nan) if shown is None else \
            np.diagonal(completion_index.row_correlations(seen, shown[here][:, axis.dims]))
        rows.append(np.stack([own, occluder, np.diagonal(completion_index.row_correlations(seen, guess[:, axis.dims])),
                              (with_truths.sum(1) - own) / (len(images) - 1)], 1))
        compared += here
    return np.array(compared, int), np.concatenate(rows) if rows else np.empty((0, len(REFERENCES)))


def compare(material, feature, views, decoded, context=None, seed=42):
    """{field: value} for FIELDS: means over views, and differences with 95% intervals (bootstrap over images).

    Arguments: see `correlations`. None where no view can be compared.
    """
    compared, r = correlations(material, feature, views, decoded, context)
    if not len(compared):
        return None
    images = material.views.rows[compared]
    present, position = np.unique(images, return_inverse=True)
    count = np.bincount(position)
    row = {"views": len(compared), "images": len(present), **dict(zip(REFERENCES, map(float, r.mean(0))))}
    for name, reference in zip(REFERENCES[1:], r.T[1:]):
        difference = np.bincount(position, r[:, 0] - reference)
        bounds = (np.nan, np.nan) if np.isnan(difference).any() else completion_index.interval(difference, count, seed)
        row |= {f"over_{name}": float(difference.sum() / count.sum()), f"over_{name}_low": bounds[0],
                f"over_{name}_high": bounds[1]}
    return row
