"""The experiment's files: design, stimulus table, responses (nsddata/experiments, nsddata/ppdata/*/behav)."""
import csv
import io
from dataclasses import dataclass

import numpy as np
import scipy.io

from mini_nsd import world_sizes
from utils import layout


@dataclass(frozen=True)
class Design:
    """Who sees what when. All ids are 0-based here and 1-based in the files.

    shared (n,)             73k ids seen by every subject, ascending
    images {subject: (k,)}  73k id of each of the subject's images, the shared ones first (the order of NSD's 10k ids)
    order (trials,)         position in `images` that each trial shows; the same for every subject, as in NSD
    session                 trials a session
    count                   stimuli in all
    """

    shared: np.ndarray
    images: dict
    order: np.ndarray
    session: int
    count: int

    def sessions(self, subject):
        """Ranges of trials, one a session."""
        return [range(start, start + self.session)
                for start in range(0, self.session * world_sizes.SESSIONS[subject], self.session)]

    def stimuli(self, subject):
        """(trials,) 73k id of each trial that the subject did."""
        return self.images[subject][self.order[:self.session * world_sizes.SESSIONS[subject]]]


def design(scale=1.0):
    """The experiment; `scale` shrinks its sessions and its images alike."""
    rng = np.random.default_rng((world_sizes.SEED, 1))
    session = max(24, round(world_sizes.TRIALS * scale))
    trials = session * max(world_sizes.SESSIONS.values())
    images = round(trials * world_sizes.IMAGES / (world_sizes.TRIALS * max(world_sizes.SESSIONS.values())))
    shared = round(images * world_sizes.SHARED / world_sizes.IMAGES)

    # Most images come three times, some twice, a few once.
    excess = world_sizes.REPEATS * images - trials
    once = excess // 6
    repeats = np.full(images, world_sizes.REPEATS)
    fewer = rng.permutation(images)
    repeats[fewer[:once]] = 1
    repeats[fewer[once:once + excess - 2 * once]] = 2
    order = rng.permutation(np.repeat(np.arange(images), repeats))

    own = images - shared
    unseen = max(2, round(world_sizes.UNSEEN * scale))
    ids = rng.permutation(shared + own * len(world_sizes.SESSIONS) + unseen)
    common, rest = np.sort(ids[:shared]), ids[shared:]
    seen = {subject: np.concatenate([common, rest[k * own:(k + 1) * own]])
            for k, subject in enumerate(world_sizes.SESSIONS)}
    return Design(common, seen, order, session, len(ids))


def write_expdesign(root, plan):
    """nsd_expdesign.mat, 1-based. Rows of `subjectim` for the subjects that are not simulated are zeros."""
    subjectim = np.zeros((len(layout.SUBJECTS), plan.order.max() + 1), np.int32)
    for subject, images in plan.images.items():
        subjectim[layout.SUBJECTS.index(subject)] = images + 1
    content = {"sharedix": plan.shared[None].astype(np.int32) + 1, "subjectim": subjectim,
               "masterordering": plan.order[None].astype(np.int32) + 1}
    buffer = io.BytesIO()
    scipy.io.savemat(buffer, content)
    # The format opens with 116 characters of free text, where scipy puts the time: one world, one set of bytes.
    text = "MATLAB 5.0 MAT-file, SIMULATED by mini_nsd".ljust(116).encode()
    path = world_sizes.for_writing(root / "nsddata/experiments/nsd/nsd_expdesign.mat")
    path.write_bytes(text + buffer.getvalue()[len(text):])


def coco_ids(plan):
    """cocoId (n,) and cocoSplit (n,) of each stimulus: made up, none is the image that COCO has under that id."""
    rng = np.random.default_rng((world_sizes.SEED, 2))
    ids = rng.choice(np.arange(1, 581930), plan.count, replace=False)
    return ids, np.where(rng.random(plan.count) < 0.05, "val2017", "train2017")


def write_stim_info(root, plan):
    """nsd_stim_info_merged.csv; `subjectN_repM` is the 1-based trial, 0 for none, and covers the whole design."""
    ids, splits = coco_ids(plan)
    numbers = range(1, len(layout.SUBJECTS) + 1)
    trials = {subject: _trials_of(plan, subject) for subject in plan.images}
    shared = set(plan.shared.tolist())
    with open(world_sizes.for_writing(root / "nsddata/experiments/nsd/nsd_stim_info_merged.csv"), "w", newline="",
              encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["", "cocoId", "cocoSplit", "cropBox", "loss", "nsdId", "flagged", "BOLD5000", "shared1000",
                         *(f"subject{n}" for n in numbers), *(f"subject{n}_rep{k}" for n in numbers for k in range(3))])
        for stimulus in range(plan.count):
            shown = [trials.get(subject, {}).get(stimulus, []) for subject in layout.SUBJECTS]
            writer.writerow([stimulus, ids[stimulus], splits[stimulus], "(0, 0, 0, 0)", 0.0, stimulus, False, False,
                             stimulus in shared, *(int(bool(of)) for of in shown),
                             *(number for of in shown
                               for number in (of + [0] * world_sizes.REPEATS)[:world_sizes.REPEATS])])


def _trials_of(plan, subject):
    """{73k id: its 1-based trials in the design}."""
    found = {}
    for trial, stimulus in enumerate(plan.images[subject][plan.order], start=1):
        found.setdefault(int(stimulus), []).append(trial)
    return found


def write_responses(root, plan, subject):
    """responses.tsv with NSD's columns. The answers to "seen before?" are made up: 85% right, RT about 0.8 s."""
    rng = np.random.default_rng((world_sizes.SEED, 3, layout.SUBJECTS.index(subject)))
    # 63 and 62 trials in turn, as NSD
    starts = np.linspace(0, plan.session, world_sizes.RUNS + 1).round().astype(int)[1:]
    rows, before = [], {}
    for session, trials in enumerate(plan.sessions(subject), start=1):
        run, in_run, latest = 1, 0, {}
        for position, trial in enumerate(trials):
            if position == starts[run - 1]:
                run, in_run = run + 1, 0
            in_run += 1
            image = int(plan.order[trial])
            seen = before.setdefault(image, [])
            old, recent = bool(seen), image in latest
            says_old = old == (rng.random() < 0.85)
            pressed = rng.random() > 0.005
            time = 7 * (session - 1) + 0.5 + (run - 1) * 6.5 / 1440 + in_run * 4 / 86400
            answer = [int(says_old == old), f"{800 * np.exp(0.25 * rng.standard_normal()):.6f}",
                      int(rng.random() < 0.02)] if pressed else ["NaN"] * 3
            # NSD leaves MEMORYFIRST blank at the second presentation, where it would repeat MEMORYRECENT.
            memory = [trial - seen[-1] - 1, trial - seen[0] - 1 if len(seen) > 1 else ""] if old else ["NaN"] * 2
            current = int(says_old == recent) if pressed else "NaN"
            buttons = [int(pressed and not says_old), int(pressed and says_old), 1 + says_old if pressed else "NaN"]
            rows.append([layout.SUBJECTS.index(subject) + 1, session, run, in_run, plan.images[subject][image] + 1,
                         image + 1, f"{time:.9f}", int(old), *answer, *memory, int(recent), current, *buttons, 0])
            seen.append(trial)
            latest[image] = trial
    with open(world_sizes.for_writing(root / f"nsddata/ppdata/{subject}/behav/responses.tsv"), "w", newline="",
              encoding="utf-8") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerow(world_sizes.RESPONSES)
        writer.writerows(rows)
