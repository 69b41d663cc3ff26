"""Where each of NSD's files lies below its root (NSD data manual; docs/nsd_formats.md), and NSD's constants."""
import re

from utils.errors import Problem

STIMULI = 73_000  # images in NSD (NSD data manual, "Experiments")
SCALE = 300  # a stored integer is percent signal change times this (NSD data manual, "Functional data (NSD)")
PREPARATION = "func1pt8mm"
BETAS = "betas_fithrf_GLMdenoise_RR"
AGAIN = "get the file from NSD again"
DESIGN_KEY = "nsddata/experiments/nsd/nsd_expdesign.mat"
INFO_KEY = "nsddata/experiments/nsd/nsd_stim_info_merged.csv"
STIMULI_KEY = "nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5"


def responses_key(subject):
    return f"nsddata/ppdata/{subject}/behav/responses.tsv"


def betas_prefix(subject):
    return f"nsddata_betas/ppdata/{subject}/{PREPARATION}/{BETAS}/"


def betas_key(subject, session):
    return f"{betas_prefix(subject)}betas_session{session:02}.nii.gz"


def betas_hdf5_key(subject, session):
    """The same betas with a chunk for each voxel (docs/nsd_formats.md)."""
    return f"{betas_prefix(subject)}betas_session{session:02}.hdf5"


def ncsnr_key(subject):
    return f"{betas_prefix(subject)}ncsnr.nii.gz"


def atlas_key(subject, name):
    return f"nsddata/ppdata/{subject}/{PREPARATION}/roi/{atlas_file_name(name)}.nii.gz"


def table_keys(subject, name):
    """Where a label table may be: the subject's own, fsaverage's, then that of a volumetric atlas (MTL, thalamus).

    The volumes of one hemisphere (lh.streams) have the table of both (streams).
    """
    both = atlas_file_name(name).removeprefix("lh.").removeprefix("rh.")
    return [*(f"nsddata/freesurfer/{owner}/label/{both}.mgz.ctab" for owner in (subject, "fsaverage")),
            f"nsddata/templates/{both}.ctab"]


def captions_key(split):
    """COCO's captions; split: train2017 or val2017."""
    return f"nsddata_stimuli/stimuli/nsd/annotations/captions_{split}.json"


def atlas_file_name(name):
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", name) or name.startswith("."):
        raise Problem(f"{name!r} is not the name of an atlas", "name a label volume of NSD's roi/ folder")
    return name
