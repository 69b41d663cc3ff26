"""The split and the pairing of trials, stimuli and features, over random designs."""
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import make_subjmri
import make_subjstim
import ridge
from tests import tiny_nsd
from utils import layout
from utils.errors import Problem
from utils.features import subjstim
from utils.nsd import trials
from utils.ridge import ridge_decoder
from utils.storage import arrays, feature_shards, subject_matrices


@st.composite
def designs(draw):
    """Sessions of 0-based ids, repeats of any number; shared ids that may be unseen; a session left out."""
    ids = draw(st.lists(st.integers(0, 60), min_size=4, max_size=60))
    cuts = sorted(draw(st.lists(st.integers(1, len(ids)), max_size=3)))
    sessions = [ids[a:b] for a, b in zip([0, *cuts], [*cuts, len(ids)]) if b > a]
    absent = draw(st.sampled_from(range(len(sessions)))) if len(sessions) > 1 and draw(st.booleans()) else None
    shared = draw(st.sets(st.integers(0, 80), max_size=25))
    return [session for number, session in enumerate(sessions) if number != absent], sorted(shared)


@settings(max_examples=150, deadline=None)
@given(designs())
def test_every_row_is_paired_by_stimulus_id_and_the_split_never_leaks(design):
    sessions, shared = design
    stims = np.concatenate(sessions)
    made = trials.Design.of(stims, shared)
    assert made.stims_ave.tolist() == list(dict.fromkeys(stims.tolist()))
    assert np.array_equal(made.stims_ave[made.rows], stims)
    train, test = made.split("tr"), made.split("te")
    assert sorted([*train.trials, *test.trials]) == list(range(len(stims)))
    assert not set(train.stimuli) & set(test.stimuli)
    assert set(test.stimuli) == set(stims) & set(shared)
    for split in (train, test):
        assert np.all(np.diff(split.trials) > 0)
        assert split.stimuli.tolist() == list(dict.fromkeys(stims[split.trials].tolist()))
        assert np.array_equal(split.stimuli[split.rows], stims[split.trials])
        if len(split.trials):
            betas = np.random.default_rng(0).integers(-32768, 32767, (len(split.trials), 3)).astype(np.int16)
            found = np.concatenate(list(trials.averages(lambda: betas, split.rows, len(split.stimuli))))
            loop = [betas[stims[split.trials] == stimulus].astype(float).mean(0) for stimulus in split.stimuli]
            assert np.array_equal(found, np.array(loop, np.float32))


# the same, end to end: from NSD's files to what the decoder is given


@st.composite
def data_sets(draw):
    """Sessions of 1-based ids, repeats of any number; shared ids, some unseen; and a session without betas, or None."""
    sessions = draw(st.lists(st.lists(st.integers(1, 25), min_size=2, max_size=9), min_size=2, max_size=4))
    shared = draw(st.lists(st.integers(1, 40), min_size=1, max_size=12, unique=True))
    absent = draw(st.sampled_from([None, *range(len(sessions))]))
    seen = {stimulus for number, session in enumerate(sessions) if number != absent for stimulus in session}
    assume(seen & set(shared) and seen - set(shared))
    return sessions, shared, absent


def feature_of(stimulus):
    """What a 0-based id's feature is in these tests: told by its values."""
    return np.array([stimulus, stimulus ** 2 + 1, -stimulus], np.float32)


class Recorder:
    """Stands in for regression.Decoder: keeps what is paired with what."""

    def __init__(self, voxels, rows, **_):
        self.voxels, self.rows = voxels, rows
        Recorder.given = self

    def predict_to(self, features, test, out, test_features, **_):
        self.features, self.test, self.test_features = features[:][self.rows], test, test_features[:]
        out[:] = 0
        return SimpleNamespace(at_edge=0, alphas=[1], summary=lambda: dict.fromkeys(
            ("test_correlation", "test_pattern_correlation")))


@pytest.mark.parametrize("use", ["each", "ave"])
def test_from_nsds_files_to_the_decoder_every_voxel_meets_the_feature_of_its_stimulus(
        tmp_path_factory, monkeypatch, use):
    monkeypatch.setattr(ridge_decoder, "Decoder", Recorder)

    @settings(max_examples=12, deadline=None, database=None)
    @given(data_sets())
    def check(data_set):
        sessions, shared, absent = data_set
        folder = tmp_path_factory.mktemp("random")
        world = tiny_nsd.build(folder / "nsd", sessions, shared)
        monkeypatch.setenv("NSD_ROOT", str(world))
        # The slow and obvious reference: one trial after another, by its id.
        mask = tiny_nsd.labels() == 1
        activity = {}
        for number, session in enumerate(sessions):
            if number == absent:
                (world / tiny_nsd.BETAS.format(number + 1)).unlink()
                continue
            volumes = tiny_nsd.betas(number + 1, len(session))
            for trial, stimulus in enumerate(session):
                activity.setdefault(stimulus - 1, []).append(sorted(volumes[..., trial][mask].tolist()))
        make_subjmri.main(["--workdir", str(folder), "--roi", "early"])
        for stimulus in range(40):
            arrays.write_npy(layout.feature_file(layout.features(folder, "c"), stimulus), feature_of(stimulus))
        subject = ["--workdir", str(folder), "--subject", "subj01"]
        make_subjstim.main([*subject, "--featname", "c", "--use_stim", use])
        ridge.main([*subject, "--target", "c", "--roi", "early", "--gpu", "-1", "--use_stim", use])

        given = Recorder.given
        train = {stimulus for stimulus in activity if stimulus + 1 not in shared}
        met = {}
        for voxels, feature in zip(given.voxels, given.features):
            stimulus = int(feature[0])
            assert np.array_equal(feature, feature_of(stimulus))
            met.setdefault(stimulus, []).append(np.asarray(voxels))
        assert set(met) == train
        for stimulus in train:
            if use == "each":
                assert [sorted(trial.tolist()) for trial in met[stimulus]] == activity[stimulus]
            else:
                assert len(met[stimulus]) == 1
                assert met[stimulus][0].mean() == pytest.approx(np.mean(activity[stimulus]), abs=1e-2)
        assert [int(feature[0]) for feature in given.test_features] == [
            stimulus for stimulus in activity if stimulus not in train]
        for voxels, feature in zip(given.test, given.test_features, strict=True):
            assert np.array_equal(feature, feature_of(int(feature[0])))
            assert voxels.mean() == pytest.approx(np.mean(activity[int(feature[0])]), abs=1e-2)

    check()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A tiny subject and its mrifeat/."""
    folder = tmp_path_factory.mktemp("made")
    world = tiny_nsd.build(folder / "nsd")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NSD_ROOT", str(world))
        make_subjmri.main(["--workdir", str(folder)])
        make_subjmri.main(["--workdir", str(folder), "--zscore", "session"])
    return layout.Workspace(folder, "subj01")


def test_voxels_are_joined_in_the_order_given(made):
    voxels = trials.load_voxels(made, ["ventral", "early"])
    parts = [np.load(made.betas(roi, "tr")) for roi in ("ventral", "early")]
    assert voxels.train.dtype == np.int16 and np.array_equal(voxels.train, np.concatenate(parts, axis=1))
    parts = [np.load(made.betas(roi, "te", average=True)) for roi in ("ventral", "early")]
    assert voxels.test.dtype == np.float32 and np.array_equal(voxels.test, np.concatenate(parts, axis=1))
    assert voxels.train_average.shape == (len(voxels.train_stimuli), voxels.train.shape[1])
    assert np.array_equal(voxels.train_stimuli[voxels.train_rows], voxels.train_stims)
    assert voxels.train.shape[0] == len(voxels.train_stims) and voxels.test.shape[0] == len(voxels.test_stimuli)
    assert voxels.test_stimuli.tolist() == [100, 101, 102]
    assert np.array_equal(trials.test_stimuli(made), voxels.test_stimuli)


def test_a_choice_of_voxels_is_read_under_its_own_name(made):
    voxels = trials.load_voxels(made, ["early"], layout.VoxelChoice(zscore="session"))
    assert voxels.train.dtype == np.float32
    assert np.array_equal(voxels.train, np.load(made.betas("early-zsession", "tr")))


def test_missing_voxels_name_the_command_and_what_is_there(made, tmp_path):
    with pytest.raises(Problem, match="ROIs there:.*early.*make_subjmri.py"):
        trials.load_voxels(made, ["hippocampus"])
    with pytest.raises(Problem, match="make_subjmri.py --subject subj01"):
        trials.test_stimuli(layout.Workspace(tmp_path, "subj01"))
    with pytest.raises(Problem, match="twice"):
        trials.load_voxels(made, ["early", "early"])


def test_voxels_of_other_sessions_than_the_trials_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("NSD_ROOT", str(tiny_nsd.build(tmp_path / "nsd")))
    make_subjmri.main(["--workdir", str(tmp_path)])
    make_subjmri.main(["--workdir", str(tmp_path), "--sessions", "2", "--roi", "early", "--overwrite"])
    ws = layout.Workspace(tmp_path, "subj01")
    trials.load_voxels(ws, ["early"])
    with pytest.raises(Problem, match="ventral.*different sessions"):
        trials.load_voxels(ws, ["early", "ventral"])


def test_arrays_of_trials_that_do_not_belong_together_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("NSD_ROOT", str(tiny_nsd.build(tmp_path / "nsd")))
    make_subjmri.main(["--workdir", str(tmp_path)])
    ws = layout.Workspace(tmp_path, "subj01")
    arrays.write_npy(ws.betas("early", "tr"), np.load(ws.betas("early", "tr"))[:-1])
    with pytest.raises(Problem, match="early_betas_tr.*rows belongs"):
        trials.load_voxels(ws, ["early"]).train
    arrays.write_npy(ws.stims, np.load(ws.stims)[::-1])
    with pytest.raises(Problem, match="do not belong together"):
        trials.load_design(ws)


# the subject's features


def shards(made, name, dtype=np.float16, leave_out=(), **attributes):
    """Features (2, 3) of each stimulus that can be told by their values, in shards of 50 ids."""
    folder = feature_shards.Shards(layout.features(made.workdir, name))
    ids = [stimulus for stimulus in range(110) if stimulus not in leave_out]
    for part in feature_shards.shard_ranges(ids, 50):
        features = np.array(part)[:, None, None] + np.arange(6).reshape(2, 3) / 8
        made_by = {"model": "m", "dtype": str(np.dtype(dtype)), "feature": name}
        folder.write(part, features.astype(dtype), made_by | attributes)
    return folder


@pytest.mark.parametrize("use", ["each", "ave"])
def test_subject_features_hold_each_stimulus_once_and_lead_trials_to_it(made, use, capsys):
    shards(made, "c")
    make_subjstim.main(["--workdir", str(made.workdir), "--subject", "subj01", "--featname", "c", "--use_stim", use,
                        "--npy"])
    stims, shared = np.load(made.stims), [100, 101, 102]
    with h5py.File(made.subject_features(use, "c")) as file:
        assert dict(file.attrs) == {"model": "m", "dtype": "float16", "feature": "c"}
        for split, chosen in (("tr", ~np.isin(stims, shared)), ("te", np.isin(stims, shared))):
            order = list(dict.fromkeys(stims[chosen].tolist()))
            features, rows = file[split]["features"][:], file[split]["trial_rows"][:]
            assert file[split]["stim_ids"][:].tolist() == order
            assert features.dtype == np.float16
            assert np.array_equal(features, (np.array(order)[:, None] + np.arange(6) / 8).astype(np.float16))
            expected = stims[chosen] if use == "each" else np.array(order)
            assert np.array_equal(np.array(order)[rows], expected)
            matrix = np.load(made.subject_features_npy(use, "c", split))
            assert matrix.dtype == np.float16 and np.array_equal(matrix[:, 0], expected)
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("subj01 c tr: ") and out[0].endswith("6 dims float16") and len(out) == 2


def test_missing_features_name_the_stage_and_nothing_is_made_up(made):
    shards(made, "dpt_emb0", leave_out=[8, 101])
    with pytest.raises(Problem, match=r"lacks 2 of the 9 stimuli.*(101, 8|8, 101).*img2feat_dpt.py"):
        subjstim.gather(made, "dpt_emb0", "ave", "nsd")
    assert not made.subject_features("ave", "dpt_emb0").exists()


def test_whole_and_occluded_features_cannot_be_swapped(made):
    shards(made, "c")
    shards(made, "init_latent")
    with pytest.raises(Problem, match="make_subjstim_occluded.py"):
        subjstim.gather(made, "c_occluded", "ave", "nsd")
    with pytest.raises(Problem, match="make_subjstim.py"):
        subjstim.gather(made, "c", "ave", "occluded")
    subjstim.gather(made, "c_occluded", "ave", "occluded", folder=layout.features(made.workdir, "c"))
    with pytest.raises(Problem, match="holds the feature init_latent"):
        subjstim.gather(made, "init_latent_occluded", "ave", "occluded",
                        folder=layout.features(made.workdir, "init_latent"))


def test_features_of_another_model_are_refused_until_asked_for(made):
    shards(made, "blip")
    subjstim.gather(made, "blip", "ave", "nsd")
    before = made.subject_features("ave", "blip").read_bytes()
    subjstim.gather(made, "blip", "ave", "nsd")
    shards(made, "blip", model="n")
    with pytest.raises(Problem, match="'m'.*'n'.*--overwrite"):
        subjstim.gather(made, "blip", "ave", "nsd")
    assert made.subject_features("ave", "blip").read_bytes() == before
    subjstim.gather(made, "blip", "ave", "nsd", overwrite=True)
    with subject_matrices.SubjectFeatures(made.subject_features("ave", "blip"), "") as matrix:
        assert matrix.attributes["model"] == "n"


def test_one_file_a_stimulus_as_the_original_wrote_is_read_too(made):
    for stimulus in range(110):
        path = layout.feature_file(layout.features(made.workdir, "old"), stimulus)
        arrays.write_npy(path, np.full((2, 2), stimulus, np.float32))
    made_ = subjstim.gather(made, "old", "ave", "nsd")
    assert made_["te"] == (3, 3, 4, np.float32)
    with subject_matrices.SubjectFeatures(made.subject_features("ave", "old"), "") as matrix:
        assert matrix.features("te")[:, 3].tolist() == [100, 101, 102]
