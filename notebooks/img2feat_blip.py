# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
#   language_info:
#     file_extension: .py
#     mimetype: text/x-python
#     name: python
#     nbconvert_exporter: python
# ---

# %% [markdown]
# # What `img2feat_blip.py` made of the pictures
#
# BLIP turns a picture into an embedding, a vector for each patch, and an embedding into a caption. The method `text`
# decodes the embedding from brain activity, and lets BLIP say what it is of.
#
# By default this looks at the **simulated** subject that `make demo` leaves. For your own run, set the scripts'
# `NSD_ROOT` and `NSD_MODELS`, and `WORKDIR` to their `--workdir` (`docs/notebooks.md`).

# %%
import sys

sys.path[:0] = [".", ".."]  # the repository, from its root or from notebooks/

from types import SimpleNamespace

import numpy as np

from utils import layout, plotting
from utils.evaluate import caption_scores
from utils.features import extraction
from utils.nsd import coco_captions, stimulus_file, trials
from utils.report import notebook_plots
from utils.storage import feature_shards

SUBJECT, SHOWN, COMPARED = "subj01", 6, 24
ws, root, who = notebook_plots.start(SUBJECT)

# %% [markdown]
# ## Pictures, embeddings, captions
#
# Test pictures, evenly spaced in the order in which the subject first saw them; 73k ids count from 0. A row of an
# embedding is a patch (the first stands for the whole picture), a column a unit. A true caption is one of those that
# NSD's pictures have from COCO; the simulated world's are generated.

# %%
test = trials.test_stimuli(ws)
ids = test[plotting.evenly(len(test), COMPARED)]
embeddings = feature_shards.Shards(layout.features(ws.workdir, "blip")).read(ids, "img2feat_blip.py").astype(np.float32)
by_blip = extraction.blip_captions(SimpleNamespace(workdir=ws.workdir, dataset="nsd"))
blip = [said[0] for said in coco_captions.captions_of(by_blip, ids)]
true = coco_captions.captions_of(coco_captions.captions(root, ws.workdir), ids)
some = plotting.evenly(len(ids), SHOWN)
with stimulus_file.Stimuli(stimulus_file.stimuli_path(root, ws.workdir)) as stimuli:
    pictures = stimuli.read(ids[some])
sentences = {"BLIP": [blip[place] for place in some], "true": [true[place][0] for place in some]}
notebook_plots.told(pictures, sentences, "BLIP's embeddings and captions", who, maps=embeddings[some],
                    labels=[f"73k id {ids[place]}" for place in some])

# %% [markdown]
# ## Do pictures with similar embeddings have similar captions?
#
# Left: correlation of the pictures' embeddings, each without what all share. Right: words that BLIP's caption of one
# picture shares with the true captions of another (F1). The diagonal is a picture with itself.

# %%
alike = np.corrcoef((embeddings - embeddings.mean(axis=0)).reshape(len(ids), -1))
words = np.array([[caption_scores.overlap(caption, said) for said in true] for caption in blip])
others = ~np.eye(len(ids), dtype=bool)
print(f"correlation of the two over pairs of different pictures: {np.corrcoef(alike[others], words[others])[0, 1]:.2f}")
notebook_plots.tables({"embeddings (r)": alike, "captions (F1 of words)": words},
                      f"How alike {len(ids)} test pictures are", who, "picture", "picture")
