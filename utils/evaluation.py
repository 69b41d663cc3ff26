"""Features of a run's pictures, one file per picture and feature, resumable."""
import numpy as np

from utils import cli, evaluators, images, layout, models, store
from utils.errors import Problem


def _load(paths):
    return np.stack([images.load(path, side=images.SAMPLE_SIZE) for path in paths])


def extract(args):
    """Write the missing features of every picture of the run that the arguments name."""
    ws, run = layout.Workspace.of(args), cli.run_name(args)
    samples, folder = ws.samples(run), ws.identification(run)
    pictures = [path for paths in layout.found_images(samples).values() for what, path in paths.items() if what != "occ"]
    if not pictures:
        raise Problem(f"{samples} holds no pictures", f"run diffusion_decoding.py --method {args.method} first")
    judges = evaluators.Evaluators(args.usefeat, cli.device(args.gpu))
    made_from = store.read_json(layout.manifest(samples))
    store.claim_folder(folder, store.record("img2feat_decoded.py", {"run": run}, pictures=made_from), args.overwrite)
    store.claim_folder(folder / "networks", judges.identities() | models.arithmetic(judges.device), args.overwrite)

    with store.working(folder, 0, 1):
        # A batch with any feature missing is made whole: see diffusion_decoding.py.
        missing = [path for path in pictures if args.overwrite or not all(
            layout.image_feature(folder, path.stem, name).exists() for name in args.usefeat)]
        absent = set(missing)
        batches = [batch for start in range(0, len(pictures), args.batch_size)
                   if absent & set(batch := pictures[start:start + args.batch_size])]
        with cli.progress(desc=f"features of {run}", total=len(pictures), initial=len(pictures) - len(missing),
                          unit="img") as bar:
            for batch, loaded in images.prefetch(_load, batches):
                for name, found in judges(loaded).items():
                    for path, feature in zip(batch, found):
                        target = layout.image_feature(folder, path.stem, name)
                        if args.overwrite or not target.exists():
                            store.write_npy(target, feature)
                bar.update(len(absent & set(batch)))
    print(f"{run}: {len(missing)} pictures × {len(args.usefeat)} features computed, {len(pictures) - len(missing)} already there")
