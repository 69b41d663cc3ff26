"""Sentence-level scores of decoded captions, in CLIP's text space, beside the words that they share with true ones.

The similarity of a caption to an image is the mean cosine of its embedding to those of the image's true captions
(pooled, projected: CLIP's text features). Identification: the share of the other images whose captions are less similar
to the decoded one than its own image's are; ties, as between scenes that people describe alike, count one half.
"""
import numpy as np

from utils import captioning, identification, trials

FIELDS = ("captions", "dataset", "control", "metric", "direction", "value", "low", "high", "chance", "n_images", "note")
PEOPLE = "people"


def similarities(captions, references, embed):
    """(n, n) float64: similarity of caption i (of n strings) to image j, whose true captions are references[j].

    embed: n sentences → (n, dims) unit vectors, see `captioning.clip_text_features`.
    """
    theirs = np.stack([embed(each).mean(axis=0) for each in references]).astype(np.float64)
    return np.round(embed(captions).astype(np.float64) @ theirs.T, identification.DECIMALS)


def scores(captions, references, embed):
    """{metric: ((n,) per image, chance)} of captions of n images; identification in percent. See the module's words."""
    similar = similarities(captions, references, embed)
    own, n = np.diagonal(similar), len(captions)
    shared = [captioning.overlap(*pair) for pair in zip(captions, references)]
    following = [captioning.overlap(caption, references[(i + 1) % n]) for i, caption in enumerate(captions)]
    return {
        "CLIP text similarity": (own, float((similar.sum() - own.sum()) / (n * (n - 1)))),
        "CLIP text identification": (100 * identification.accuracy(similar), 100 * identification.CHANCE),
        "word F1": (np.array(shared), float(np.mean(following))),
    }


def rows(ws, device, seed):
    """(rows of FIELDS, files read) of all files of decoded captions; last, one person's caption against the others'."""
    found = ws.found_captions()
    if not found:
        return [], []
    count = len(trials.test_stimuli(ws))
    references = captioning.people(ws, ws.workdir)
    embed = captioning.clip_text_features(device)
    made = []
    for path, target, dataset, control in found:
        captions = captioning.read(path, count, "decode_captions.py")
        said = {None: "", "true_features": "true features"}.get(control, "shuffled trials")
        made += _rows((target.removesuffix("_occluded"), dataset, said), scores(captions, references, embed), seed)
    if all(len(each) > 1 for each in references):
        first, others = [each[0] for each in references], [each[1:] for each in references]
        made += _rows((PEOPLE, "nsd", ""), scores(first, others, embed), seed,
                      "each image's first true caption against its others, a ceiling")
    return made, [path for path, *_ in found]


def _rows(names, scored, seed, note=""):
    made = []
    for metric, (values, chance) in scored.items():
        numbers = (float(each) for each in (values.mean(), *identification.interval(values, seed)))
        made.append(dict(zip(FIELDS, (*names, metric, "higher", *numbers, chance, len(values), note))))
    return made
