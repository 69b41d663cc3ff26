"""How well captions fit their images, against what people say of these. The one definition, whoever prints it.

People's captions are judged by the others that the image has, so decoded ones are judged by as many: every score is the
mean over leaving each of an image's captions out in turn, and where people are scored, the one left out is the caption
(the jackknife that ROUGE compares systems and people by: Lin 2004, section 2.1; the best of M references is better than
the best of M - 1). An image with fewer captions than another has some of them left out more often. Where an image has a
single caption, none is left out anywhere, and people are not scored.

The similarity of a caption to an image is the mean cosine of its embedding to those of the image's captions in CLIP's
text space (pooled, projected). Identification: the share of the other images whose captions are less similar to the
caption than its own image's are; ties, as between scenes that people describe alike, count one half. Overlap: the best
F1 of the words shared with one of the image's captions.
"""
import re
from collections import Counter

import numpy as np

from utils import lazy
from utils.evaluate import identification
from utils.features import extraction
from utils.models import loading

torch = lazy.module("torch")

OTHERS = 20             # of the other images, whose captions say what sharing words by chance comes to


def score(captions, references, embed, seed=42):
    """How well captions fit their images; see the module's words.

    captions: n strings, or None for people's own. references: n lists of strings, what people say. embed: see
    `clip_text_features`. Returns "identification": see identification.summary; "similarity", "overlap": means over the
    images; "similarity_others", "overlap_others": the same with other images; "per_image": the n scores that
    "identification", "similarity" and "overlap" are means of. Of a single image, which cannot be told from others, all
    but "overlap" is None.
    """
    own, others = _overlaps(captions, references)
    found = dict.fromkeys(("identification", "similarity", "similarity_others", "overlap_others", "per_image"))
    found["overlap"] = float(own.mean())
    if len(references) < 2:
        return found
    table, similar = identified(captions, references, embed)
    n, near = len(similar), np.diagonal(similar)
    return found | {
        "identification": identification.summary_of(table, seed), "similarity": float(near.mean()),
        "similarity_others": float((similar.sum() - near.sum()) / (n * (n - 1))), "overlap_others": others,
        "per_image": {"identification": np.diagonal(table).tolist(), "similarity": near.tolist(),
                      "overlap": own.tolist()}}


def _left_out(references):
    """[(n,) position of the caption that is left out of each image's, or None for none], to be averaged over."""
    counts = np.array([len(each) for each in references])
    return [k % counts for k in range(counts.max())] if counts.min() > 1 else [None]


def identified(captions, references, embed):
    """((n, n) accuracies as of identification.pairwise_accuracy, (n, n) similarity of caption i to image j)."""
    theirs = [embed(each).astype(np.float64) for each in references]
    said = None if captions is None else embed(captions).astype(np.float64)
    tables, similarities = [], []
    for out in _left_out(references):
        if out is None:
            kept = np.stack([each.mean(0) for each in theirs])
        else:
            kept = np.stack([(each.sum(0) - each[k]) / (len(each) - 1) for each, k in zip(theirs, out)])
        mine = np.stack([each[k] for each, k in zip(theirs, out)]) if said is None else said
        similarities.append(np.round(mine @ kept.T, identification.DECIMALS))
        tables.append(identification.pairwise_accuracy(similarities[-1]))
    return np.mean(tables, axis=0), np.mean(similarities, axis=0)


def _overlaps(captions, references):
    """((n,) overlap of each caption with its image's, mean overlap with up to OTHERS other images'; None of one)."""
    theirs, n = [[_words(each) for each in of_image] for of_image in references], len(references)
    said = None if captions is None else [_words(caption) for caption in captions]
    own, others = [], []
    for out in _left_out(references):
        kept = theirs if out is None else [each[:k] + each[k + 1:] for each, k in zip(theirs, out)]
        mine = [each[k] for each, k in zip(theirs, out)] if said is None else said
        own.append([_best(*pair) for pair in zip(mine, kept)])
        others += [_best(words, kept[(number + shift) % n]) for shift in range(1, min(OTHERS, n - 1) + 1)
                   for number, words in enumerate(mine)]
    return np.mean(own, axis=0), float(np.mean(others)) if others else None


def overlap(caption, references):
    """Largest F1 of the words that a caption shares with one of its references, in [0, 1]; repeated words count."""
    return _best(_words(caption), [_words(reference) for reference in references])


def _best(words, references):
    def f1(other):
        both = sum((words & other).values())
        return 2 * both / (sum(words.values()) + sum(other.values())) if both else 0.0

    return max(map(f1, references))


def _words(sentence):
    return Counter(re.findall(r"[a-z0-9']+", sentence.lower()))


def people_can_be_scored(references):
    """Whether each image has captions to judge the one left out by."""
    return min(map(len, references)) > 1


def clip_text_features(device):
    """A function of n sentences → (n, dims) float32 unit vectors, CLIP's text features."""
    model, _, tokenizer = loading.clip(device)
    longest = model.config.text_config.max_position_embeddings

    @lazy.inference_mode
    def embed(sentences):
        tokens = tokenizer(sentences, padding=True, truncation=True, max_length=longest, return_tensors="pt").to(device)
        pooled = model.text_model(**tokens).pooler_output
        found = torch.nn.functional.normalize(model.text_projection(pooled).float(), dim=-1)
        return extraction.finite(found, "CLIP's text encoder", "check the weights of the role clip")

    return embed


def sentence(scored):
    """`score`'s result as a line for a reader."""
    found = scored["identification"]
    if found is None:
        return ("one image, which cannot be told from others; "
                f"words shared with people's captions (F1) {scored['overlap']:.2f}")
    low, high = found["interval"]
    return (f"decoded captions tell their image from others in {found['accuracy']:.3f} [{low:.2f}, {high:.2f}] of "
            f"cases, p = {found['p']:.4f}, chance {found['chance']} ({found['images']} images, CLIP's text features); "
            f"words shared with people's captions (F1) {scored['overlap']:.2f}, with those of other images "
            f"{scored['overlap_others']:.2f}")
