"""From shards of features, one row a stimulus, to a subject's matrices for training and test."""
import numpy as np

from utils import cli, layout
from utils.errors import Problem
from utils.nsd import trials
from utils.storage import arrays, feature_shards, provenance, subject_matrices, writing

SCRIPT = "make_subjstim.py"
OCCLUDED = "_occluded"
STAGES = {"init_latent": "img2feat_sd1_parallel.py", "c": "img2feat_sd1_parallel.py", "blip": "img2feat_blip.py",
          "init_latent_occluded": "img2feat_sd1_occlusion.py", "c_occluded": "img2feat_sd1_occlusion.py",
          "blip_occluded": "img2feat_blip_occlusion.py"}


def stage_of(feature):
    """The script that extracts a feature."""
    if feature.startswith("dpt_emb"):
        return "img2feat_dpt.py"
    if feature.removesuffix(OCCLUDED) in layout.VGG19_LAYERS:
        layer = feature.removesuffix(OCCLUDED)
        return f"make_vgg19bdpy{'_occlusion' if feature.endswith(OCCLUDED) else ''}.py --layers {layer}"
    return STAGES.get(feature, "the img2feat stage that writes it")


def gather(ws, feature, use_stim, dataset, folder=None, npy=False, overwrite=False):
    """Write the subject's matrix of one feature; returns {split: (rows, stimuli, dims, dtype)}.

    use_stim: "each" pairs rows with trials, "ave" with stimuli. dataset: "nsd" or "occluded"; the feature's name must
    say the same. folder: where the shards are, default nsdfeat/{feature}. Raises Problem for stimuli that
    no shard holds: none is made up.
    """
    _check_name(feature, dataset)
    design = trials.load_design(ws)
    shards = feature_shards.Shards(folder or layout.features(ws.workdir, feature))
    made_by = stage_of(shards.folder.name)
    splits = {name: design.split(name) for name in trials.SPLITS}
    missing = shards.lacking(design.stims_ave)
    if missing:
        raise Problem(f"{shards.folder} lacks {len(missing)} of the {len(design.stims_ave)} stimuli that {ws.subject} "
                      f"saw (73k ids {', '.join(map(str, missing[:5]))}{' …' if len(missing) > 5 else ''})",
                      f"run {made_by}")
    attributes = shards.attributes()
    _check_origin(feature, attributes, shards.folder)
    wanted = provenance.record(SCRIPT,
                               {"subject": ws.subject, "feature": feature, "use_stim": use_stim, "dataset": dataset},
                               [ws.stims, ws.stims_ave, ws.stims_ave_test], features=attributes,
                               shards=shards.files(design.stims_ave))
    path = ws.subject_features(use_stim, feature)
    with writing.locked(path):
        if not provenance.is_done(path, wanted, overwrite):
            _write(path, wanted, use_stim, splits, shards, made_by, attributes)
        if npy:
            _write_npy(ws, path, wanted, feature, use_stim, overwrite)
    with subject_matrices.SubjectFeatures(path, SCRIPT) as matrix:
        return {name: (len(_rows(split, use_stim)), *matrix.features(name).shape, matrix.features(name).dtype)
                for name, split in splits.items()}


def _check_name(feature, dataset):
    if feature.endswith(OCCLUDED) != (dataset == "occluded"):
        if dataset == "occluded":
            raise Problem(f"--featname {feature} is a feature of whole images",
                          f"name {feature}{OCCLUDED} here, or run make_subjstim.py")
        raise Problem(f"--featname {feature} is a feature of occluded images", "run make_subjstim_occluded.py")


def _check_origin(feature, attributes, folder):
    """Shards must be of the feature; captions, and so `c`, may be those of the whole images."""
    found = attributes.get("feature", feature)
    if found != feature and not (found == "c" and feature == "c" + OCCLUDED):
        raise Problem(f"{folder} holds the feature {found}, not {feature}", "give the --input_dir of that feature")


def _rows(split, use_stim):
    return split.rows if use_stim == "each" else np.arange(len(split.stimuli))


def _write(path, wanted, use_stim, splits, shards, made_by, attributes):
    with cli.progress(desc=path.stem, total=sum(len(split.stimuli) for split in splits.values()), unit="img") as bar:
        subject_matrices.write_subject_features(
            path, {name: (split.stimuli, _rows(split, use_stim), lambda ids: shards.read(ids, made_by))
                   for name, split in splits.items()}, attributes, wanted, progress=bar.update)


def _write_npy(ws, path, wanted, feature, use_stim, overwrite, block=256):
    """The original's matrices: a row per trial (each) or per stimulus (ave)."""
    with subject_matrices.SubjectFeatures(path, SCRIPT) as matrix:
        for split in trials.SPLITS:
            target = ws.subject_features_npy(use_stim, feature, split)
            record = wanted | {"split": split}
            if provenance.is_done(target, record, overwrite):
                continue
            features, rows = matrix.features(split), matrix.trial_rows(split)
            with writing.atomic(target) as temporary:
                out = arrays.new_npy(temporary, (len(rows), features.shape[1]), features.dtype)
                for start in range(0, features.shape[0], block):
                    here = np.flatnonzero((rows >= start) & (rows < start + block))
                    out[here] = features[start:start + block][rows[here] - start]
                out.flush()
                del out  # Windows renames no file that is mapped
                provenance.finish(target, record, temporary)
