"""How large a subject's data are, from NSD's small files or by its manual: what the costs of the stages depend on."""
from dataclasses import dataclass, field

import numpy as np

from utils import layout
from utils.errors import Problem
from utils.nsd import beta_source, experiment, mrifeat, object_keys, ranges, s3, trials

STIMULUS = 425 * 425 * 3  # bytes of an image in nsd_stimuli.hdf5
BYTES, REQUESTS = 62_300_000, 11_887  # that a session of subj01 takes by voxel (docs/streaming.md)


@dataclass(frozen=True)
class Study:
    """A subject's numbers. The defaults are those of subj01's first 37 sessions, which the paper used.

    trials of all sessions, train_trials of them; stimuli, train_stimuli and test of them. voxels: {ROI: number}.
    betas: the beta_source.Cost of a session's betas over the link. stimulus: bytes of an image. assumed: why these are
    not the subject's own numbers, or "".
    """

    sessions: int = 37
    trials: int = 27_750
    train_trials: int = 24_980
    stimuli: int = 9_841
    train_stimuli: int = 8_859
    test: int = 982
    voxels: dict = field(default_factory=lambda: dict(SUBJ01))
    betas: beta_source.Cost | None = None
    stimulus: int = STIMULUS
    assumed: str = ""

    def width(self, rois):
        """Voxels of some ROIs together."""
        return sum(self.voxels.get(roi, 0) for roi in rois)


SUBJ01 = {"early": 5_917, "ventral": 7_604, "midventral": 986, "midlateral": 834, "lateral": 7_799, "parietal": 3_548,
          "midparietal": 950}


def of(root, subject, link):
    """The Study of a subject, from NSD's design, responses, atlas and listing. Raises Problem where one is missing."""
    design = experiment.design(root)
    responses = experiment.responses(root, subject, design)
    used = experiment.sessions(root, subject, responses.sessions)
    kept = np.isin(responses.sessions, used)
    found = trials.Design.of(responses.stimuli[kept], design.shared)
    voxels, grid, _, _ = mrifeat.choose_voxels(root, subject, layout.VoxelChoice(), None)
    positions = np.concatenate(list(voxels.values()))
    per_session = int(kept.sum()) // len(used)
    sizes = dict(root.list(object_keys.betas_prefix(subject)))
    whole = beta_source.whole(sizes[object_keys.betas_key(subject, used[0])],
                              2 * per_session * int(np.prod(grid.shape)), link)
    betas = whole
    if object_keys.betas_hdf5_key(subject, used[0]) in sizes:
        betas = min(whole, beta_source.by_voxel(positions, per_session, link), key=lambda cost: cost.seconds)
    test = found.split("te")
    return Study(len(used), len(found.stims), len(found.stims) - len(test.trials), len(found.stims_ave),
                 len(found.stims_ave) - len(test.stimuli), len(test.stimuli),
                 {tag: len(each) for tag, each in voxels.items()}, betas)


def assumed(link, why):
    """The Study of a subject like NSD's subj01, with betas by voxel, and why it is none of its own."""
    return Study(betas=beta_source.Cost(link.seconds(REQUESTS, BYTES), BYTES, REQUESTS), assumed=why)


def found(subject):
    """(s3.Root or None, Study, Problem or None, ranges.Link): of the subject where NSD answers, else of subj01's
    numbers, and why."""
    root = None
    try:
        root = s3.Root.from_env()
        first = next((key for key, _ in root.list(object_keys.betas_prefix(subject)) if key.endswith(".nii.gz")), None)
        link = beta_source.measured(root, first) if first else ranges.Link(root.local)
        return root, of(root, subject, link), None, link
    except Problem as problem:
        link = ranges.Link()
        return root, assumed(link, problem.what), problem, link
