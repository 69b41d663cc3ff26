"""Pictures of what is hidden: the truth, what a reconstruction from the brain puts there, and what none puts there.

Views behind occluders are reconstructed as the cvpr method does it (`reconstruction.ROI_OF`: the latent from early, the
conditioning from ventral cortex, decoders trained on whole images alone), from the activity while the occluded picture
was seen. Beside it stands the same diffusion model without a brain, given the visible part
(utils/generate/inpainting.py).
"""
import numpy as np

from utils import cli, images, layout, lazy, plotting
from utils.completion import closeness, completion_index, picture_features
from utils.errors import Problem
from utils.generate import diffusion, inpainting
from utils.occlusion import occluded_viewing
from utils.ridge import fit_targets, ridge_decoder
from utils.storage import picture_files, text_files

torch = lazy.module("torch")

BATCH = 16
CONTROLS = 2            # of the views, those in which an object is wholly hidden; 0 below FEWEST views
FEWEST = 8
SAMPLE = 0              # a view has one
PICTURES = ("shown", "truth", "brain", "context", "hidden")


def spread(material, count):
    """Numbers of `count` views, evenly spaced over masks and, behind each, over scenes; none hides an object wholly."""
    if not material.axes["local"]:
        raise Problem(f"no occluder hides a whole cell of {picture_features.GRID} × {picture_features.GRID}",
                      "leave --inpaint and --reconstruct out, or show larger occluders")
    rows = np.concatenate([axis.rows for axis in material.axes["local"]])
    rows = rows[np.lexsort((rows, material.views.masks[rows]))]
    return rows[plotting.evenly(len(rows), count)]


def controls(material, count):
    """Numbers of up to CONTROLS views that hide an object wholly, of `count` in all; occluders made for it first."""
    if count < FEWEST:
        return np.array([], int)
    names, position, shared = np.unique(material.views.masks, return_inverse=True, return_counts=True)
    gone = np.flatnonzero(material.lost)
    own = gone[shared[position[gone]] == 1]
    gone = own if len(own) else gone
    return gone[plotting.evenly(len(gone), CONTROLS)]


def decode(ws, voxels, average, target):
    """(n, dims) float32: a target's decoded feature, in its own units; the fit is that of ridge.py.

    voxels: `trials.Voxels` of the ROI. average (n, voxels): mean activity of each view.
    """
    with fit_targets.open_features(ws, "each", target, "original") as matrix:
        fit_targets.check_pairing(matrix, voxels)
        decoder = ridge_decoder.Decoder(voxels.train, voxels.train_rows, n_stimuli=len(voxels.train_stimuli))
        features = matrix.features("tr")
        out = np.empty((len(average), features.shape[1]), np.float32)
        with cli.progress(desc=f"decoding {target}", total=out.shape[1], unit="dim") as bar:
            decoder.predict_to(features, average, out, progress=lambda done, _: bar.update(done - bar.n))
    return out


def noise(seed, views, shape):
    """(n, *shape) float32 standard normal noise of each view, for its one sample."""
    return torch.stack([diffusion.sample_noise(seed, int(view), SAMPLE, shape) for view in views])


def make(args, model, shown, hidden, views, latents, conditioning):
    """(brain, context), each (n, 512, 512, 3) uint8, of n views behind occluders.

    shown (n, H, W, 3) uint8, hidden (n, H, W) bool. views (n,): numbers from which each view's noise derives. latents,
    conditioning: decoded, a row each.
    """
    shape = (model.latent_channels, model.latent_side, model.latent_side)
    made = {"brain": [], "context": []}
    with cli.progress(total=len(views), desc="close-ups", unit="view") as bar:
        for start in range(0, len(views), BATCH):
            part = slice(start, start + BATCH)
            started = noise(args.seed, views[part], shape)
            text = torch.from_numpy(conditioning[part].reshape(-1, *model.text_shape))
            made["brain"].append(images.to_pixels(model.img2img(
                model.start_latents(torch.from_numpy(latents[part])), text, started, steps=args.steps,
                solver=args.scheduler, progress=False)))
            made["context"].append(inpainting.inpaint(model, shown[part], hidden[part], started))
            bar.update(len(started))
    return tuple(np.stack([images.resize(picture, images.SAMPLE_SIZE) for part in made[name] for picture in part])
                 for name in ("brain", "context"))


def clear(ws):
    """Remove close-ups that were made otherwise."""
    if ws.closeups.is_dir():
        layout.manifest(ws.closeups).unlink(missing_ok=True)
        for path in layout.plain_files(ws.closeups):
            path.unlink()


def write(ws, wanted, views, pairs, gone, pictures):
    """Save the PICTURES of each view, and last the manifest that says which view each is and what made it (`wanted`).

    views, pairs, gone: number, (stimulus, mask), and whether an object is wholly hidden, of each. pictures: {one of
    PICTURES:
    (n, H, W, 3), or (n, H, W) for "hidden", uint8}.
    """
    records = []
    for row, (view, (stimulus, mask)) in enumerate(zip(views, pairs)):
        for what in PICTURES:
            picture_files.save(ws.closeup(int(view), stimulus, what), pictures[what][row])
        records.append({"view": int(view), "stim_id": int(stimulus), "mask_id": mask, "control": bool(gone[row])})
    text_files.write_json(layout.manifest(ws.closeups), wanted | {"closeups": records})


def read(ws):
    """[{"view", "stim_id", "mask_id", "control", and the path of each of PICTURES}] of the close-ups that are there."""
    path = layout.manifest(ws.closeups)
    if not path.exists():
        return []
    return [record | {what: ws.closeup(record["view"], record["stim_id"], what) for what in PICTURES}
            for record in text_files.read_json(path)["closeups"]]


def compare(material, views, brain, context, seed):
    """Rows of closeness of the pictures' local features, and how much of the innovation each holds.

    Returns ({"brain" | "context": fields of `closeness.compare`}, {the same: (value, low, high) of
    `completion_index.guessed`}).
    """
    mean, sd = material.units["local"]
    local = {name: (picture_features.local(occluded_viewing.small(pictures)) - mean) / sd
             for name, pictures in (("brain", brain), ("context", context))}
    near = {name: closeness.compare(material, "local", views, each, local["context"], seed)
            for name, each in local.items()}
    held = {name: completion_index.guessed(material, "local", views, each, seed) for name, each in local.items()}
    return near, held
