"""Write a simulated dataset in the Natural Scenes Dataset's formats: stimuli, captions, design, atlas and betas.

SIMULATED: the pictures are rendered, the subjects do not exist, their activity comes from the forward model of
mini_nsd/brain_model.py. Keys, dtypes, orientation and 1-based ids are NSD's; the volumes are smaller and the sessions
fewer.

Reads   nothing
Writes  DIR/nsddata/, DIR/nsddata_betas/, DIR/nsddata_stimuli/ as NSD has them; DIR/occluded_viewing/ with sessions in
        which the test scenes were seen behind occluders; DIR/simulated/ with the ground truth
"""
import argparse
import contextlib
import os
import shutil
import signal
import threading
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context, parent_process
from pathlib import Path

import numpy as np

from mini_nsd import (
    brain_files,
    brain_making,
    brain_model,
    experiment_files,
    occluded_viewing,
    stimulus_files,
    world_sizes,
)
from utils import __version__, cli, layout, system
from utils.errors import Problem
from utils.nsd import atlases
from utils.storage import locks, text_files


def build(folder, subjects=tuple(world_sizes.SESSIONS), noise=1.0, scale=1.0, workers=world_sizes.WORKERS,
          completes=None,
          gaze=occluded_viewing.GAZE, hdf5=False):
    """Write the world to `folder`. Returns False if it was there already, made with the same options.

    noise: factor on the noise of every voxel. scale: share of the trials, images and voxels (tests use a tiny world).
    completes: {ROI: how far the brain completes what an occluder hides}, default `occluded_viewing.COMPLETION`. gaze:
    sd of fixation in the sessions of occluded viewing, degrees. hdf5: also write the betas as HDF5, as NSD has them.
    Raises Problem if the folder holds something else. A build that is killed leaves no world: all is written to a
    hidden folder beside it, which the next build clears.
    """
    folder = Path(folder).resolve()
    completes = completes or occluded_viewing.COMPLETION
    options = {"subjects": sorted(subjects), "noise": noise, "scale": scale, "version": __version__,
               "completion": completes, "gaze": gaze, "hdf5": hdf5}
    if (folder / world_sizes.MARKER).exists():
        found = text_files.read_json(folder / world_sizes.MARKER)["options"]
        if found != options:
            differ = sorted(key for key in options if found.get(key) != options[key])
            raise Problem(f"{folder} holds a simulated world built with "
                          f"{_named(found, differ)}, not {_named(options, differ)}",
                          "name another folder, or delete this one")
        return False
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise Problem(f"{folder} is there and is not a simulated world", "name a new or an empty folder")

    plan = experiment_files.design(scale)
    with _beside(folder) as root:
        steps = plan.count + sum(world_sizes.SESSIONS[subject] + 1 for subject in subjects) + 1
        behind = occluded_viewing.chosen(plan.shared, scale), world_sizes.SEED
        with _workers(workers) as pool, cli.progress(total=steps, desc="simulated NSD", unit="step") as bar:
            pictures, visible, noted = stimulus_files.write_stimuli(root, plan, pool, bar.update)
            later = [pool.submit(occluded_viewing.write_stimuli, root, *behind, world_sizes.SIDE)]
            brains, ratios = {}, {}
            for subject in options["subjects"]:
                brains[subject] = brain_making.make(subject, scale)
                brain_files.write_atlas(root, brains[subject])
                experiment_files.write_responses(root, plan, subject)
                later.append(pool.submit(occluded_viewing.write_session, root, brains[subject], *behind, noise,
                                         completes, gaze, brain_files.save_volume))
                ratios[subject] = brain_files.write_subject(root, plan, brains[subject], noise, pictures, visible, pool,
                                                            bar.update,
                                                            hdf5)
            for task in later:
                task.result()
                bar.update()
        occluded_viewing.write_objects(root, noted)
        occluded_viewing.write_description(root, completes, gaze)
        experiment_files.write_expdesign(root, plan)
        experiment_files.write_stim_info(root, plan)
        stimulus_files.write_captions(root, plan)
        stimulus_files.write_scenes(root, plan, visible)
        brain_files.write_truth(root, plan, brains, options, ratios)
        text_files.write_text(root / "SIMULATED.txt", world_sizes.NOTICE)
        summary = {subject: _summary(brains[subject], ratios[subject]) for subject in brains}
        text_files.write_json(root / world_sizes.MARKER,
                              {"options": options, "stimuli": plan.count, "noise_ceilings": summary})
    return True


def _summary(one, ratio):
    """Mean noise ceiling in percent (three trials) by ROI, and over all ROI voxels."""
    ceiling = atlases.noise_ceiling(ratio, world_sizes.REPEATS)
    by_roi = {roi: round(float(np.nanmean(ceiling[one.anatomy.label == k])), 1) for k, roi in enumerate(layout.ROIS, 1)}
    return by_roi | {"all": round(float(np.nanmean(ceiling[one.anatomy.label > 0])), 1)}


def _named(options, keys):
    return ", ".join(f"{key} {options.get(key)}" for key in keys)


@contextlib.contextmanager
def _workers(count):
    """A pool of processes that drops what is queued if the block fails."""
    pool = ProcessPoolExecutor(count, mp_context=get_context("spawn"), initializer=_enter_worker)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _enter_worker():
    """Leave Ctrl-C to the parent, and end with it, also where it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_follow, args=(parent_process(),), daemon=True).start()


def _follow(parent):
    parent.join()
    os._exit(1)


@contextlib.contextmanager
def _beside(folder):
    """A hidden folder beside `folder` that takes its name if the block ends well, and goes if it does not."""
    hidden = folder.with_name(f".{folder.name}.building")
    with contextlib.ExitStack() as building:
        try:
            building.enter_context(locks.alone(hidden.parent, hidden.name, wait=False))
        except locks.Held as error:
            raise Problem(f"another build is writing {folder}", "wait for it, or name another folder") from error
        if hidden.exists():
            shutil.rmtree(hidden)
        hidden.mkdir()
        try:
            yield hidden
            if folder.exists():
                folder.rmdir()  # an empty folder, which Windows does not rename over
            system.replace(hidden, folder)
        except BaseException:
            shutil.rmtree(hidden, ignore_errors=True)
            raise


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m mini_nsd.build", description=__doc__,
                                     epilog="example:\n  python -m mini_nsd.build demo/nsd --difficulty easy",
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="DIR", help="new or empty folder for the simulated dataset")
    harder = parser.add_mutually_exclusive_group()
    harder.add_argument("--difficulty", choices=world_sizes.DIFFICULTY, default="default",
                        help="noise half of, like, or double the default, which gives noise ceilings like NSD's")
    harder.add_argument("--noise", type=_positive, metavar="X", help="the same as a factor")
    parser.add_argument("--completion", type=_share, metavar="K",
                        help="how far every ROI completes what an occluder hides, 0 … 1 (default: by ROI, 0.25 … 0.75)")
    parser.add_argument("--gaze", type=_degrees, default=occluded_viewing.GAZE, metavar="DEG",
                        help=f"sd of fixation in the sessions of occluded viewing (default: {occluded_viewing.GAZE})")
    parser.add_argument("--hdf5", action="store_true",
                        help="also write the betas as HDF5, as NSD has them beside the NIfTI")
    parser.add_argument("--subjects", nargs="+", choices=world_sizes.SESSIONS, default=list(world_sizes.SESSIONS),
                        metavar="subjNN",
                        help=f"which of {' '.join(world_sizes.SESSIONS)} (default: all)")
    parser.add_argument("--scale", type=partial(_positive, most=1.0), default=1.0, metavar="S",
                        help="share of the trials, images and voxels, for a tinier world in tests (default: 1)")
    parser.add_argument("--workers", type=int, default=world_sizes.WORKERS, metavar="N",
                        help=f"processes; the world is the same with any number (default: {world_sizes.WORKERS})")
    parser.add_argument("--debug", action="store_true", help="show a traceback with an error")
    args = cli.parse(parser, argv)
    if args.workers < 1:
        parser.error("--workers must be at least 1")

    noise = world_sizes.DIFFICULTY[args.difficulty] if args.noise is None else args.noise
    completes = None if args.completion is None else dict.fromkeys(layout.ROIS, args.completion)
    made = build(args.folder, tuple(dict.fromkeys(args.subjects)), noise, args.scale, args.workers, completes,
                 args.gaze, args.hdf5)
    found = text_files.read_json(args.folder / world_sizes.MARKER)
    cli.say(f"{args.folder} {'now holds' if made else 'already holds'} this simulated world: "
            f"{found['stimuli']} stimuli, noise {noise:g}")
    for subject, ceilings in found["noise_ceilings"].items():
        print(f"{subject}: simulated noise ceiling {ceilings['all']:.1f}% on average over the ROI voxels")


def _positive(text, most=float("inf")):
    value = float(text)
    if not 0 < value <= most:
        raise argparse.ArgumentTypeError(f"must be above 0{'' if most == float('inf') else f' and at most {most:g}'}")
    return value


def _share(text):
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError("must be from 0 to 1")
    return value


def _degrees(text):
    value = float(text)
    if not 0 <= value <= brain_model.FIELD / 4:
        raise argparse.ArgumentTypeError(f"must be from 0 to {brain_model.FIELD / 4:g}")
    return value


if __name__ == "__main__":
    cli.run(main)
