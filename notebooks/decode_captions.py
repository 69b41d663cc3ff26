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
# # What `decode_captions.py` read in the activity
#
# Brain activity was decoded to BLIP's embedding (`ridge.py --target blip`), and BLIP said what that embedding is of.
# Here are decoded captions beside true ones, and how well a decoded caption finds its picture among all test pictures.
#
# By default this looks at the **simulated** subject that `make demo` leaves. For your own run, set the scripts'
# `NSD_ROOT` and `NSD_MODELS`, and `WORKDIR` to their `--workdir` (`docs/notebooks.md`).

# %%
import sys

sys.path[:0] = [".", ".."]  # the repository, from its root or from notebooks/

import numpy as np

from utils import cli, layout
from utils.evaluate import caption_scores, identification
from utils.generate import captioning
from utils.nsd import stimulus_file, trials
from utils.report import figures, notebook_plots
from utils.storage import text_files

SUBJECT, SHOWN, GPU = "subj01", 6, -1
ws, root, who = notebook_plots.start(SUBJECT)
test, true = trials.test_stimuli(ws), captioning.people(ws, ws.workdir)
made_by = f"decode_captions.py --subject {SUBJECT}"
decoded = captioning.read(ws.captions(), len(test), made_by)
print(caption_scores.sentence(text_files.read_json(layout.sidecar(ws.captions()))["score"]))

# %% [markdown]
# ## Decoded and true captions
#
# A caption is as good as the share of other pictures that it fits less than its own, by CLIP's text features. The
# examples are evenly spaced ranks from best to worst; none is hand-picked. A true caption is one of those that NSD's
# pictures have from COCO; the simulated world's are generated.

# %%
embed = caption_scores.clip_text_features(cli.device(GPU))
table, similar = caption_scores.identified(decoded, true, embed)
accuracies = np.diagonal(table)
ranked = figures.by_rank(dict(enumerate(accuracies)), SHOWN)
some = [image for image, _ in ranked]
with stimulus_file.Stimuli(stimulus_file.stimuli_path(root, ws.workdir)) as stimuli:
    pictures = stimuli.read(test[some])
sentences = {"decoded": [decoded[image] for image in some], "true": [true[image][0] for image in some]}
notebook_plots.told(pictures, sentences, "Decoded and true captions", who, labels=[label for _, label in ranked])

# %%
notebook_plots.ranks(accuracies, "Identification by decoded captions", who, identification.CHANCE)

# %% [markdown]
# ## Retrieval by caption
#
# The test pictures whose true captions are most similar to a decoded caption (numbers: similarity). The green frame is
# the picture that the subject saw.

# %%
with stimulus_file.Stimuli(stimulus_file.stimuli_path(root, ws.workdir)) as stimuli:
    figure = notebook_plots.retrieved([(decoded[image], image) for image in some],
                                      lambda rows: stimuli.read(test[rows]),
                                      similar, "Pictures found by decoded captions", who)
figure

# %% [markdown]
# ## Are captions only generic?
#
# A caption that fits every picture makes a row of this table bright; one that fits its own alone, the diagonal.

# %%
notebook_plots.tables({"by CLIP's text features": similar}, "Decoded against true captions", who,
                      "image, by its true captions", "decoded caption")
