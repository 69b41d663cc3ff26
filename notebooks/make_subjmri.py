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
# # What `make_subjmri.py` did
#
# It streamed every session's responses from NSD, kept the voxels of each ROI, and wrote down which trial showed which
# picture. Shown here: which voxels those are, that trials and pictures belong together, how reliable responses are, and
# what scaling them by session does.
#
# By default this looks at the **simulated** subject that `make demo` leaves. For your own run, set the scripts'
# `NSD_ROOT` and `NSD_MODELS`, and `WORKDIR` to their `--workdir` (`docs/notebooks.md`).

# %%
import sys

sys.path[:0] = [".", ".."]  # the repository, from its root or from notebooks/

import numpy as np

from utils import layout
from utils.nsd import atlases, beta_session, experiment, mrifeat, nifti_volumes, object_keys, stimulus_file, trials
from utils.report import notebook_plots
from utils.storage import arrays

SUBJECT, ROI = "subj01", "early"
ws, root, who = notebook_plots.start(SUBJECT)
design, sessions = trials.load_design(ws), notebook_plots.sessions(ws)
print(f"{who}: {len(design.stims):,} trials in {len(sessions)} sessions, {len(design.stims_ave):,} pictures, "
      f"{design.test.sum()} of them for the test")

# %% [markdown]
# ## Which voxels
#
# The ROIs of NSD's atlas `streams`, on axial slices of one trial's responses. Only that trial is read from its file.

# %%
atlas = atlases.atlas(root, SUBJECT)
with nifti_volumes.beta_volumes(root, SUBJECT, sessions[0]) as volumes:
    first = next(iter(volumes))
notebook_plots.regions(atlas, first, who)

# %% [markdown]
# All voxels of a ROI are kept unless `--ncsnr_min` asks for reliable ones: NSD gives each voxel's noise-ceiling
# signal-to-noise ratio. On the right, what a threshold would cost.

# %%
voxels, *_ = mrifeat.choose_voxels(root, SUBJECT, layout.VoxelChoice(), None)
ratio, _ = atlases.ncsnr(root, SUBJECT)
ratios = {roi: ratio.ravel()[positions] for roi, positions in voxels.items()}
assert all(arrays.read_npy(ws.betas(roi, "tr"), mmap=True).shape[1] == len(kept) for roi, kept in voxels.items())
notebook_plots.kept(ratios, ratio.size, who)

# %% [markdown]
# ## Trials and pictures
#
# The first trials in scan order, with 73k ids that count from 0. Their responses are read twice: from what the script
# wrote, and again from NSD's file.

# %%
FIRST = 8
stored = trials.in_scan_order(ws, design, ROI)[:FIRST]
with nifti_volumes.beta_volumes(root, SUBJECT, sessions[0]) as volumes:
    again = np.stack([volume.ravel()[voxels[ROI]] for _, volume in zip(range(FIRST), volumes)])
print(f"the {len(again)} trials read again are the same: {np.array_equal(again, stored[:len(again)])}")
with stimulus_file.Stimuli(stimulus_file.stimuli_path(root, ws.workdir)) as stimuli:
    pictures = stimuli.read(design.stims[:FIRST])
labels = [f"trial {trial}\n73k id {stimulus}\n{'test' if design.test[row] else 'training'}"
          for trial, (stimulus, row) in enumerate(zip(design.stims[:FIRST], design.rows))]
notebook_plots.alignment(pictures, stored / object_keys.SCALE, labels, who)

# %% [markdown]
# ## How reliable responses are
#
# NSD showed most pictures three times. Here is the voxel of a ROI with the best signal-to-noise ratio, on training
# trials. A dot is a trial, a dash the mean.

# %%
best = int(np.nanargmax(ratios[ROI]))
betas = trials.in_scan_order(ws, design, ROI, [best])
train = design.split("tr")
notebook_plots.repeats(betas[train.trials, 0] / object_keys.SCALE, train.rows, f"Best voxel of {ROI}", who)

# %% [markdown]
# No model can predict more of a response than its signal's share of the variance: the noise ceiling.

# %%
notebook_plots.ceilings(ratios, 3, who)

# %% [markdown]
# ## What z-scoring does
#
# The mean and the scale of responses can change from session to session. `make_subjmri.py --zscore session` makes them
# 0 and 1 in each, by what the training trials alone say, so that nothing of the test enters.

# %%
responses = experiment.responses(root, SUBJECT)
session = responses.sessions[np.isin(responses.sessions, sessions)]
training = ~design.test[design.rows]
here = [session == number for number in sessions]
scaled = np.concatenate([beta_session.zscored(betas[chosen], training[chosen], f"session {number}")
                         for number, chosen in zip(sessions, here)])
notebook_plots.scaling(betas[:, 0] / object_keys.SCALE, scaled[:, 0], session, f"Best voxel of {ROI}", who)
