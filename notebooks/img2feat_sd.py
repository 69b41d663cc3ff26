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
# # What `img2feat_sd.py` fetched, and what the latent keeps of it
#
# The stimuli lie in one large file, of which only the pictures asked for are read. Stable Diffusion's autoencoder turns
# each into a small latent (`img2feat_sd1_parallel.py`), and that is what brain activity is decoded to: whatever the
# latent loses, no decoder can bring back.
#
# By default this looks at the **simulated** subject that `make demo` leaves. For your own run, set the scripts'
# `NSD_ROOT` and `NSD_MODELS`, and `WORKDIR` to their `--workdir` (`docs/notebooks.md`).

# %%
import sys

sys.path[:0] = [".", ".."]  # the repository, from its root or from notebooks/

import numpy as np
import torch

from utils import cli, images, layout, plotting
from utils.evaluate import picture_metrics
from utils.generate import diffusion
from utils.models import loading
from utils.nsd import stimulus_file, trials
from utils.report import notebook_plots
from utils.storage import feature_shards

SUBJECT, SHOWN, GPU = "subj01", 6, -1
ws, root, who = notebook_plots.start(SUBJECT)

# %% [markdown]
# ## The stimuli
#
# Test pictures, evenly spaced in the order in which the subject first saw them; 73k ids count from 0.

# %%
test = trials.test_stimuli(ws)
ids = test[plotting.evenly(len(test), SHOWN)]
with stimulus_file.Stimuli(stimulus_file.stimuli_path(root, ws.workdir)) as stimuli:
    pictures = stimuli.read(ids)
    whole = np.prod(stimuli.shape, dtype=float)
print(f"{len(ids)} of {stimuli.count:,} pictures read: {pictures.nbytes / 1e6:,.1f} of {whole / 1e6:,.0f} MB")
labels = [f"73k id {stimulus}" for stimulus in ids]
notebook_plots.pictures([pictures], ["as shown"], labels, "Stimuli", who)

# %% [markdown]
# ## What the latent keeps
#
# The features that `img2feat_sd1_parallel.py` wrote, and the pictures that the autoencoder makes of them. SSIM is 1 for
# equal pictures.

# %%
shards = feature_shards.Shards(layout.features(ws.workdir, "init_latent"))
latents = shards.read(ids, "img2feat_sd1_parallel.py").astype(np.float32)
model = diffusion.LatentDiffusion(loading.stable_diffusion(cli.device(GPU), torch.float32))
small = np.stack([images.resize(picture, model.feature_size) for picture in pictures])
back = images.to_pixels(model.decode(torch.from_numpy(latents)), model.feature_size)
off = np.abs(small.astype(int) - back).mean(axis=3)
print(f"{small[0].size:,} numbers a picture become {latents[0].size:,}")
scores = [f"SSIM {picture_metrics.similarity(one, other):.2f}" for one, other in zip(small, back)]
channels = [f"latent, channel {number}" for number in range(latents.shape[1])]
notebook_plots.pictures([small, *latents.transpose(1, 0, 2, 3), back, off],
                        ["at the model's size", *channels, "decoded again", "difference (bright: large)"],
                        scores, "What the latent keeps", who)

# %% [markdown]
# Coarse structure stays, fine detail is made up by the decoder. By spatial frequency:

# %%
notebook_plots.detail(small, back, who)
