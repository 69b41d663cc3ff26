"""The simulated dataset: NSD's formats read back directly, and a brain that responds as its description says."""
import csv
import filecmp
import gzip
import json
import signal
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path

import boto3
import botocore.exceptions
import h5py
import nibabel
import numpy as np
import pytest
import scipy.io
from botocore import UNSIGNED
from botocore.config import Config

from mini_nsd import (
    brain_files,
    brain_making,
    brain_model,
    brain_noise,
    brain_responses,
    build,
    experiment_files,
    scene_captions,
    scene_rendering,
    scene_sampling,
    scenes,
    serve,
    world_sizes,
)
from utils import layout
from utils.errors import Problem
from utils.nsd import atlases, coco_captions, mrifeat, s3

SCALE = 0.06
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mini_nsd") / "world"
    assert build.build(folder, scale=SCALE, hdf5=True)
    return folder


@pytest.fixture(scope="module")
def one():
    return brain_making.make("subj01", scale=0.12)


@pytest.fixture(scope="module")
def seen():
    """Pictures, scenes and visibilities of 330 scenes that are not in the dataset."""
    drawn = [scene_sampling.sample(9, index) for index in range(330)]
    rendered = [scene_rendering.render(scene, 2 * brain_model.GRID) for scene in drawn]
    return (brain_responses.retina([picture.image for picture in rendered]), drawn,
            [brain_responses.visibility(picture) for picture in rendered])


def trials(world, subject):
    with open(world / f"nsddata/ppdata/{subject}/behav/responses.tsv", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def volume(world, key):
    return nibabel.load(world / key)


def truth(world, subject="subj01"):
    return {name: np.array(values) for name, values in
            json.loads((world / "simulated/truth.json").read_text())[subject]["voxels"].items()}


# Formats


def test_expdesign_is_1_based_and_lists_the_shared_images_first(world):
    design = scipy.io.loadmat(world / "nsddata/experiments/nsd/nsd_expdesign.mat")
    shared, images, order = design["sharedix"], design["subjectim"], design["masterordering"]
    assert shared.shape[0] == order.shape[0] == 1 and images.shape[0] == 8
    assert shared.min() >= 1 and order.min() == 1 and order.max() == images.shape[1]
    assert (np.diff(shared[0]) > 0).all()
    for row in images[:2]:
        assert row.min() >= 1 and len(set(row)) == len(row)
        np.testing.assert_array_equal(row[:shared.size], shared[0])
    assert set(images[0]) & set(images[1]) == set(shared[0])
    assert not images[2:].any()


def test_responses_have_nsds_columns_and_agree_with_the_design(world):
    design = scipy.io.loadmat(world / "nsddata/experiments/nsd/nsd_expdesign.mat")
    for number, (subject, sessions) in enumerate(world_sizes.SESSIONS.items(), start=1):
        rows = trials(world, subject)
        assert list(rows[0]) == (
            "SUBJECT SESSION RUN TRIAL 73KID 10KID TIME ISOLD ISCORRECT RT CHANGEMIND MEMORYRECENT MEMORYFIRST "
            "ISOLDCURRENT ISCORRECTCURRENT TOTAL1 TOTAL2 BUTTON MISSINGDATA").split()
        positions = np.array([int(row["10KID"]) for row in rows])
        np.testing.assert_array_equal(positions, design["masterordering"][0, :len(rows)])
        np.testing.assert_array_equal([int(row["73KID"]) for row in rows],
                                      design["subjectim"][number - 1, positions - 1])
        assert {int(row["SUBJECT"]) for row in rows} == {number}
        assert sorted({int(row["SESSION"]) for row in rows}) == list(range(1, sessions + 1))
        assert sorted({int(row["RUN"]) for row in rows}) == list(range(1, 13))
        seen = Counter()
        for row in rows:
            assert int(row["ISOLD"]) == (row["73KID"] in seen) == (row["MEMORYRECENT"] != "NaN")
            first = row["MEMORYFIRST"]  # blank where it would repeat MEMORYRECENT
            assert {0: first == "NaN", 1: first == ""}.get(seen[row["73KID"]], first.isdecimal())
            seen[row["73KID"]] += 1
        assert set(seen.values()) >= {1, 2, 3}


def test_a_full_session_has_nsds_trials_and_runs(tmp_path):
    plan = experiment_files.design()
    assert plan.session == 750 and len(plan.order) == 3000
    experiment_files.write_responses(tmp_path, plan, "subj01")
    runs = Counter((row["SESSION"], row["RUN"]) for row in trials(tmp_path, "subj01"))
    assert sorted(set(runs.values())) == [62, 63]


def test_design_has_enough_images_and_uneven_repeats():
    plan = experiment_files.design()
    repeats = Counter(Counter(plan.order.tolist()).values())
    assert repeats[3] > 5 * repeats[2] and repeats[2] > repeats[1] >= 10 and set(repeats) == {1, 2, 3}
    shared = set(plan.shared.tolist())
    first, second = (set(plan.stimuli(subject).tolist()) for subject in ("subj01", "subj02"))
    assert len(shared) >= 120 and shared <= first and len(first - shared) >= 880
    assert shared - second and len(shared & second) > 0.8 * len(shared)
    assert len(first | second) < plan.count


def test_stim_info_ties_the_stimuli_to_trials_and_captions(world):
    with open(world / "nsddata/experiments/nsd/nsd_stim_info_merged.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[:9] == ["", "cocoId", "cocoSplit", "cropBox", "loss", "nsdId", "flagged", "BOLD5000",
                                 "shared1000"]
    assert list(rows[0])[9:] == ([f"subject{n}" for n in range(1, 9)]
                                 + [f"subject{n}_rep{k}" for n in range(1, 9) for k in range(3)])
    assert [int(row["nsdId"]) for row in rows] == list(range(len(rows)))
    shared = scipy.io.loadmat(world / "nsddata/experiments/nsd/nsd_expdesign.mat")["sharedix"][0]
    assert [int(row["nsdId"]) + 1 for row in rows if row["shared1000"] == "True"] == shared.tolist()
    done = trials(world, "subj01")
    for row in rows:
        shown = [int(row[f"subject1_rep{k}"]) for k in range(3)]
        assert int(row["subject1"]) == any(shown)
        for trial in filter(None, shown):
            assert int(done[trial - 1]["73KID"]) == int(row["nsdId"]) + 1

    by_image = {}
    for split in ("train2017", "val2017"):
        path = world / f"nsddata_stimuli/stimuli/nsd/annotations/captions_{split}.json"
        content = json.loads(path.read_text())
        assert set(content) == {"info", "licenses", "images", "annotations"} and "SIMULATED" in path.read_text()
        assert ({image["id"] for image in content["images"]}
                == {int(row["cocoId"]) for row in rows if row["cocoSplit"] == split})
        for annotation in content["annotations"]:
            by_image.setdefault(annotation["image_id"], []).append(annotation["caption"])
    for row in rows:
        scene = scene_sampling.sample(73, int(row["nsdId"]))
        said = by_image[int(row["cocoId"])]
        assert [caption.strip() for caption in said[:5]] == scene_captions.captions(scene, 5)
    assert {len(said) for said in by_image.values()} == {5, 6, 7}
    stray = [caption for said in by_image.values() for caption in said if caption != caption.strip()]
    assert {caption[0] == " " for caption in stray} == {True, False} and all(caption.strip() for caption in stray)
    read = coco_captions.captions(s3.Folder(world))
    assert not read.empty and all(read[stimulus][:5] == scene_captions.captions(scene_sampling.sample(73, stimulus), 5)
                                  for stimulus in read)


def test_stimuli_are_the_rendered_scenes(world):
    listed = json.loads((world / "simulated/scenes.json").read_text())
    with h5py.File(world / "nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5") as file:
        bricks = file["imgBrick"]
        assert bricks.shape == (len(listed), 425, 425, 3) and bricks.dtype == np.uint8
        assert bricks.chunks == (1, 425, 425, 3) and bricks.compression == "gzip"
        for index in (0, len(listed) - 1):
            picture = scene_rendering.render(scene_sampling.sample(73, index), 425)
            np.testing.assert_array_equal(bricks[index], picture.image)
            np.testing.assert_allclose(listed[index]["visible"], brain_responses.visibility(picture), atol=1e-4)
            assert listed[index]["nsdId"] == index and len(listed[index]["objects"]) == len(picture.amodal)
    with h5py.File(world / "simulated/depth.hdf5") as file:
        assert file["depth"].dtype == np.float16 and file["depth"].shape[0] == len(listed)
        assert 1 < file["depth"][0].min() < file["depth"][0].max() <= scenes.FAR


def test_volumes_have_nsds_dtypes_orientation_and_labels(world):
    for subject, sessions in world_sizes.SESSIONS.items():
        streams = volume(world, f"nsddata/ppdata/{subject}/func1pt8mm/roi/streams.nii.gz")
        labels = np.asarray(streams.dataobj)
        assert set(np.unique(labels)) == set(range(-1, 8))
        assert nibabel.aff2axcodes(streams.affine) == ("R", "A", "S")
        np.testing.assert_allclose(streams.header.get_zooms(), 1.8, rtol=1e-6)
        table = (world / f"nsddata/freesurfer/{subject}/label/streams.mgz.ctab").read_text().split("\n")
        assert table[:-1] == ["0 Unknown\t", *(f"{k} {roi}\t" for k, roi in enumerate(layout.ROIS, 1))]
        assert (world / "nsddata/freesurfer/fsaverage/label/streams.mgz.ctab").read_text().split("\n") == table
        assert streams.get_data_dtype() == np.float64
        assert streams.header["sform_code"] == 1 and streams.header["qform_code"] == 0
        with gzip.open(world / f"nsddata/ppdata/{subject}/func1pt8mm/roi/streams.nii.gz") as file:
            assert struct.unpack("<f", file.read(80)[76:]) == (0,)  # pixdim[0], which nibabel sets to 1 when it reads
        halves = [np.asarray(volume(world, f"nsddata/ppdata/{subject}/func1pt8mm/roi/{side}.streams.nii.gz").dataobj)
                  for side in ("lh", "rh")]
        np.testing.assert_array_equal(np.maximum(*halves), labels)
        assert not ((halves[0] > -1) & (halves[1] > -1)).any()
        right = np.argwhere(halves[1] > 0)[:, 0]  # +x is to the right
        assert np.argwhere(halves[0] > 0)[:, 0].max() < right.min()
        for name in ("lh.streams", "rh.streams"):
            assert list(atlases.atlas(s3.Folder(world), subject, name).values) == list(layout.ROIS)
        mask = np.asarray(volume(world, f"nsddata/ppdata/{subject}/func1pt8mm/brainmask.nii.gz").dataobj) > 0
        assert not (labels[~mask] > -1).any()
        visual = np.asarray(volume(world, f"nsddata/ppdata/{subject}/func1pt8mm/roi/prf-visualrois.nii.gz").dataobj)
        np.testing.assert_array_equal(visual > 0, labels == 1)
        general = np.asarray(volume(world, f"nsddata/ppdata/{subject}/func1pt8mm/roi/nsdgeneral.nii.gz").dataobj)
        assert set(np.unique(general)) == {-1, 0, 1} and (labels[general == 1] > 0).all()

        rows, clipped = trials(world, subject), None
        for session in range(1, sessions + 1):
            betas = volume(world, world_sizes.BETAS.format(subject) + f"/betas_session{session:02}.nii.gz")
            count = sum(int(row["SESSION"]) == session for row in rows)
            assert betas.shape == (*labels.shape, count)
            assert betas.get_data_dtype() == np.int16 and b"SIMULATED" in bytes(betas.header["descrip"])
            np.testing.assert_array_equal(betas.affine, streams.affine)
            values = np.asarray(betas.dataobj)
            zero = (values == 0).all(-1) & mask
            assert not values[~mask].any() and (values[mask & ~zero].std(-1) > 100).all()
            assert zero.any() == (session == brain_model.CLIPPED_SESSION)
            clipped = zero if session == brain_model.CLIPPED_SESSION else clipped
            with h5py.File(world / world_sizes.BETAS.format(subject) / f"betas_session{session:02}.hdf5") as file:
                stored = file["betas"]
                assert stored.chunks == (count, 1, 1, 1) and stored.compression is None and stored.dtype == np.int16
                np.testing.assert_array_equal(stored[()].T, values)
        ratio = volume(world, world_sizes.BETAS.format(subject) + "/ncsnr.nii.gz")
        assert ratio.get_data_dtype() == np.float32 and ratio.shape == labels.shape
        np.testing.assert_array_equal(np.isnan(np.asarray(ratio.dataobj)), clipped | ~mask)
        assert (labels[clipped] > 0).any() and (labels[clipped] <= 0).any()


def test_the_stages_cope_with_voxels_that_are_zero_in_a_session(world, tmp_path, capsys):
    ws = layout.Workspace(tmp_path, "subj01")
    for choice in (layout.VoxelChoice(), layout.VoxelChoice(zscore="session"), layout.VoxelChoice(ncsnr_min=0)):
        mrifeat.extract(ws, s3.Folder(world), choice)
    said = capsys.readouterr().err
    assert "voxels are constant within a session (session 2)" in said and "have no ncsnr (NaN) and are left out" in said
    one, found = brain_making.make("subj01", SCALE), 0
    for label, roi in enumerate(layout.ROIS, start=1):
        raw, scaled, chosen = (np.load(ws.betas(roi + tag, "tr")) for tag in ("", "-zsession", "-ncsnr0"))
        zero = (raw == 0).sum(0) > 10  # a session's trials; by chance a voxel is 0 once or twice
        assert np.isfinite(scaled).all() and ((scaled[:, zero] == 0).sum(0) > 10).all()
        assert zero.sum() == (brain_noise.clipped(one) & (one.anatomy.label == label)).sum()
        assert chosen.shape[1] == raw.shape[1] - zero.sum()
        found += zero.sum()
    assert found


def test_betas_are_300_times_the_measured_response_at_the_voxels_place(world):
    one = brain_making.make("subj01", SCALE)
    rows = trials(world, "subj01")
    session = [row for row in rows if row["SESSION"] == "2"]
    first = len([row for row in rows if row["SESSION"] == "1"])
    ids = [int(row["73KID"]) - 1 for row in session]
    shown = [scene_sampling.sample(73, index) for index in ids]
    rendered = [scene_rendering.render(scene, 425) for scene in shown]
    responses = brain_responses.respond(one, [picture.image for picture in rendered], shown,
                                        [brain_responses.visibility(picture) for picture in rendered])
    expected = brain_noise.measure(one, responses, range(first, first + len(ids)), session=2)
    expected[:, brain_noise.clipped(one)] = 0
    betas = np.asarray(volume(world, world_sizes.BETAS.format("subj01") + "/betas_session02.nii.gz").dataobj)
    x, y, z = np.unravel_index(one.anatomy.flat, one.anatomy.shape)
    np.testing.assert_allclose(betas[x, y, z] / 300, expected.T, atol=0.01)
    streams = np.asarray(volume(world, "nsddata/ppdata/subj01/func1pt8mm/roi/streams.nii.gz").dataobj)
    np.testing.assert_array_equal(streams[x, y, z], one.anatomy.label)


def test_the_written_tree_says_that_it_is_simulated(world):
    assert (world / "SIMULATED.txt").read_text().startswith("SIMULATED DATA")


# Building


def test_the_same_options_give_the_same_bytes_with_any_number_of_workers(world, tmp_path):
    assert build.build(tmp_path / "again", scale=SCALE, workers=1, hdf5=True)
    files = sorted(path.relative_to(world) for path in world.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(tmp_path / "again")
                           for path in (tmp_path / "again").rglob("*") if path.is_file())
    same, differ, failed = filecmp.cmpfiles(world, tmp_path / "again", map(str, files), shallow=False)
    assert not differ and not failed


def test_a_finished_world_is_kept_and_other_options_are_refused(world, tmp_path):
    assert not build.build(world, scale=SCALE, hdf5=True)
    with pytest.raises(Problem, match=r"built with noise 1.0, not noise 2.0"):
        build.build(world, noise=2.0, scale=SCALE, hdf5=True)
    with pytest.raises(Problem, match=r"built with hdf5 True, not hdf5 False"):
        build.build(world, scale=SCALE)
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(Problem, match="is not a simulated world"):
        build.build(tmp_path)
    assert (tmp_path / "thesis.txt").exists()


def test_a_killed_build_leaves_no_world_and_the_next_one_succeeds(tmp_path):
    command = [sys.executable, "-m", "mini_nsd.build", str(tmp_path / "world"), "--scale", "0.03"]
    killed = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    hidden = tmp_path / ".world.building/nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5"
    deadline = time.monotonic() + 120
    while not hidden.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert hidden.exists() and not (tmp_path / "world").exists()
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    assert (tmp_path / "world" / world_sizes.MARKER).exists()
    assert [path.name for path in tmp_path.iterdir()] == ["world"]


def test_difficulty_changes_the_ncsnr(world, tmp_path):
    build.main([str(tmp_path / "easy"), "--difficulty", "easy", "--scale", str(SCALE), "--subjects", "subj01"])
    easy, default = truth(tmp_path / "easy"), truth(world)
    np.testing.assert_allclose(easy["true_ncsnr"], 2 * default["true_ncsnr"], atol=2e-3)
    carries = default["signal_sd"] > 0
    assert easy["ncsnr"][carries].mean() > 1.5 * default["ncsnr"][carries].mean()


@pytest.mark.parametrize("flag", [["--noise", "0"], ["--noise", "nan"], ["--scale", "2"], ["--workers", "0"],
                                  ["--noise", "1", "--difficulty", "hard"], ["--subjects", "subj03"]])
def test_bad_options_are_usage_errors(tmp_path, flag):
    with pytest.raises(SystemExit) as stopped:
        build.main([str(tmp_path / "world"), *flag])
    assert stopped.value.code == 2


# Noise ceilings


def test_ncsnr_follows_nsds_definition_where_every_image_came_three_times():
    rng = np.random.default_rng(0)
    ids = np.tile(np.arange(200), 3)
    signal = rng.standard_normal((200, 4)) * [0, 0.5, 1, 2]
    betas = signal[ids] + rng.standard_normal((600, 4))
    z = (betas - betas.mean(0)) / betas.std(0)
    noise = z.reshape(3, 200, 4).var(0, ddof=1).mean(0)
    np.testing.assert_allclose(brain_files.ncsnr([betas], ids), np.sqrt(np.maximum(1 - noise, 0) / noise), rtol=1e-3)
    np.testing.assert_allclose(brain_files.ncsnr([betas], ids)[1:], [0.5, 1, 2], rtol=0.15)


def test_noise_ceilings_look_like_nsds():
    one = brain_making.make("subj01")
    ceiling = atlases.noise_ceiling(one.ncsnr(), world_sizes.REPEATS)
    assert 33 < ceiling.mean() < 39
    assert np.percentile(ceiling, 95) > 70 and 0.18 < (ceiling == 0).mean() < 0.26
    sizes = np.bincount(one.roi)[1:]
    np.testing.assert_array_equal(sizes, brain_model.SUBJECTS["subj01"].voxels)


def test_noise_voxels_carry_no_signal(one, seen):
    responses = brain_responses.respond(one, *seen)
    silent = one.signal_sd == 0
    assert 0.1 < silent.mean() < 0.4
    assert (responses[:, silent].std(0) < 1e-4).all() and (responses[:, ~silent].std(0) > 0.02).all()
    halves = [brain_noise.measure(one, responses, np.arange(330) + 1000 * k, 1)[:, one.anatomy.label > 0]
              for k in (1, 2)]
    agreement = np.array([np.corrcoef(a, b)[0, 1] for a, b in zip(*(half.T for half in halves))])
    assert abs(agreement[silent].mean()) < 0.06 < 0.2 < agreement[~silent].mean()


def test_noise_belongs_to_the_trial(one, seen):
    responses = brain_responses.respond(one, *seen)[:40]
    whole = brain_noise.measure(one, responses, np.arange(40), 1)
    drifting = brain_noise.measure(one, responses, np.arange(40) + 40, 1)
    np.testing.assert_array_equal(whole, brain_noise.measure(one, responses, np.arange(40), 1))
    assert np.abs(whole - drifting).mean() > 0.3
    assert np.abs(whole - brain_noise.measure(one, responses, np.arange(40), 2)).mean() > 0.05


# Forward model


def test_the_forward_model_imports_no_network():
    code = "import sys, mini_nsd.brain_noise, mini_nsd.brain_responses; " \
        "print(sorted({'torch', 'transformers', 'diffusers'} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    assert out.stdout.strip() == "[]"


def test_early_voxels_respond_to_what_is_inside_their_field_only(seen):
    one = brain_making.make("subj01")
    pictures, shown, visible = (part[:20] for part in seen)
    changed = pictures.copy()
    changed[:, :12, :12] = np.random.default_rng(0).integers(0, 256, (20, 12, 12, 3))      # a quarter of each side
    before, after = (brain_responses.respond(one, these, shown, visible) for these in (pictures, changed))
    effect = np.abs(after - before).max(0) / np.maximum(one.signal_sd, 1e-9)
    carries = (one.roi == 1) & (one.signal_sd > 0)
    x, y = one.tuning.centre.T
    reach = 3 * one.tuning.field + 3 * 0.5 / brain_model.FREQUENCIES[0]       # field, and the widest filter beyond it
    outside = np.hypot(np.maximum(x - 0.25, 0), np.maximum(y - 0.25, 0)) > reach
    inside = (x < 0.22) & (y < 0.22)
    assert (carries & outside).sum() > 50 and (carries & inside).sum() > 5
    assert effect[carries & outside].max() < 0.05
    assert effect[carries & inside].min() > 0.3


def test_early_voxels_know_no_objects_and_high_ones_no_pixels(one, seen):
    pictures, shown, visible = (part[:20] for part in seen)
    hidden = [np.zeros_like(of) for of in visible]
    base = brain_responses.respond(one, pictures, shown, visible)
    without_objects = brain_responses.respond(one, pictures, shown, hidden)
    without_picture = brain_responses.respond(one, np.full_like(pictures, 127), shown, visible)
    early, high = one.roi == 1, one.roi >= 5
    np.testing.assert_array_equal(base[:, early], without_objects[:, early])
    np.testing.assert_array_equal(base[:, high], without_picture[:, high])
    carries = one.signal_sd > 0
    middle = carries & ~early & ~high
    for other in (without_objects, without_picture):
        assert (np.abs(base - other)[:, middle].max(0) > 0).all()
    assert (np.abs(base - without_objects)[:, high & carries].max(0) > 0).all()


def test_an_object_that_is_nearly_hidden_drives_less(one, seen):
    pictures, shown, visible = (part[:60] for part in seen)
    ventral = (one.roi == 5) & (one.signal_sd > 0)
    scaled = [brain_responses.respond(one, pictures, shown, [share * of for of in visible])[:, ventral]
              for share in (0, 0.3, 1)]
    from_none = [np.abs(other - scaled[0]).mean() for other in scaled]
    assert from_none[0] == 0 < from_none[1] < from_none[2]


def test_visibility_is_the_share_of_a_silhouette_that_nothing_covers():
    picture = scene_rendering.render(scene_sampling.sample(73, 19), 100)
    whole = brain_responses.visibility(picture)
    assert ((whole > 0.3) & (whole <= 1)).all()
    everything = np.ones((100, 100), bool)
    np.testing.assert_array_equal(brain_responses.visibility(picture, everything), np.zeros_like(whole))
    half = everything.copy()
    half[:, :50] = False
    assert (brain_responses.visibility(picture, half) <= whole).all()
    np.testing.assert_allclose(brain_responses.visibility(picture, half) + brain_responses.visibility(picture, ~half),
                               whole)


def test_the_early_map_covers_the_visual_field_upside_down_and_crossed():
    one = brain_making.make("subj01")
    early = one.roi == 1
    x, y = one.tuning.centre[early].T
    place = one.anatomy.place[one.anatomy.label > 0][early]
    np.testing.assert_array_equal(place[:, 0] < 0, x > 0.5)
    np.testing.assert_array_equal(place[:, 2] < 0, y < 0.5)
    assert (np.histogram2d(x, y, bins=4, range=[[0, 1], [0, 1]])[0] > 10).all()
    eccentricity = np.hypot(x - 0.5, y - 0.5)
    assert np.corrcoef(eccentricity, one.tuning.field[early])[0, 1] > 0.5
    assert np.median(eccentricity) < 0.25       # the fovea is magnified: half the picture's area lies farther out


def test_responses_do_not_depend_on_the_batch(one, seen):
    part = [of[:30] for of in seen]
    np.testing.assert_allclose(brain_responses.respond(one, *part, batch=7), brain_responses.respond(one, *part),
                               atol=1e-4)


def test_layout_is_decodable_from_early_and_identity_from_ventral(one, seen):
    pictures, shown, visible = seen
    responses = brain_responses.respond(one, *seen)
    trial_numbers = np.arange(3)[:, None] * 330 + np.arange(330)
    betas = np.mean([brain_noise.measure(one, responses, numbers, 1) for numbers in trial_numbers], axis=0)
    betas = betas[:, one.anatomy.label > 0]
    luminance = (pictures.reshape(330, 8, 6, 8, 6, 3).mean((2, 4)) @ [0.299, 0.587, 0.114]).reshape(330, -1)
    colour = np.array([[name in {thing.colour for thing in scene.objects} for name in scenes.COLOURS]
                       for scene in shown], float)
    shape = np.array([[scene.objects[0].shape == name for name in scenes.SHAPES] for scene in shown], float)
    r = {}
    for name, target in (("luminance", luminance), ("colour", colour), ("shape", shape)):
        for roi, label in (("early", 1), ("ventral", 5)):
            r[name, roi] = ridge_correlation(betas[:, one.roi == label], target)
    shuffled = ridge_correlation(betas[:, one.roi == 5], colour[np.random.default_rng(0).permutation(330)])
    assert r["luminance", "early"] > 0.7
    assert r["colour", "ventral"] > 0.35 and r["shape", "ventral"] > 0.35
    assert r["shape", "ventral"] > r["shape", "early"] + 0.1
    assert r["luminance", "early"] > r["luminance", "ventral"]
    assert abs(shuffled) < 0.15


def ridge_correlation(voxels, target, train=250, alpha=300.0):
    """Mean correlation of a plain ridge's predictions with the held-out targets."""
    x = (voxels - voxels[:train].mean(0)) / voxels[:train].std(0)
    kernel = x[:train] @ x[:train].T + alpha * np.eye(train)
    mean = target[:train].mean(0)
    predicted = x[train:] @ x[:train].T @ np.linalg.solve(kernel, target[:train] - mean) + mean
    return np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(predicted.T, target[train:].T) if b.std() > 0])


# Serving


def anonymous(endpoint):
    return boto3.client("s3", endpoint_url=endpoint, region_name="us-east-2",
                        config=Config(signature_version=UNSIGNED, s3={"addressing_style": "path"}))


def test_served_objects_are_the_files_and_can_be_read_in_ranges(world):
    key = world_sizes.BETAS.format("subj01") + "/betas_session01.nii.gz"
    content = (world / key).read_bytes()
    with serve.serving(world) as endpoint:
        client = anonymous(endpoint)
        listed = {entry["Key"]: entry["Size"] for entry in client.list_objects_v2(Bucket=serve.BUCKET)["Contents"]}
        assert listed == {path.relative_to(world).as_posix(): path.stat().st_size
                          for path in world.rglob("*") if path.is_file()}
        whole = client.get_object(Bucket=serve.BUCKET, Key=key)
        assert whole["Body"].read() == content
        part = client.get_object(Bucket=serve.BUCKET, Key=key, Range="bytes=100-", IfMatch=whole["ETag"])
        assert part["ResponseMetadata"]["HTTPStatusCode"] == 206 and part["Body"].read() == content[100:]
        with pytest.raises(botocore.exceptions.ClientError, match="PreconditionFailed"):
            client.get_object(Bucket=serve.BUCKET, Key=key, Range="bytes=100-", IfMatch='"another"')
        client.close()
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(endpoint, timeout=5)
    with serve.serving(world) as endpoint:          # a second time in the same process
        assert anonymous(endpoint).head_object(Bucket=serve.BUCKET, Key=key)["ContentLength"] == len(content)


def test_serving_needs_a_world_and_a_free_port(world, tmp_path):
    with pytest.raises(Problem, match="holds no simulated world"), serve.serving(tmp_path):
        pass
    with serve.serving(world) as endpoint:
        port = int(endpoint.rsplit(":", 1)[1])
        with pytest.raises(Problem, match="cannot be used"), serve.serving(world, port):
            pass


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_command_says_when_it_is_ready_and_stops_when_told(world, tmp_path, number):
    ready = tmp_path / "ready"
    command = [sys.executable, "-m", "mini_nsd.serve", str(world), "--ready-file", str(ready)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                          text=True) as served:
        try:
            line = served.stdout.readline().strip()
            endpoint = ready.read_text().strip()
            assert line == f"export NSD_ROOT=s3://natural-scenes-dataset AWS_ENDPOINT_URL_S3={endpoint}"
            body = anonymous(endpoint).get_object(Bucket=serve.BUCKET, Key="SIMULATED.txt")["Body"].read()
            assert body.startswith(b"SIMULATED DATA")
            served.send_signal(number)
            assert served.wait(timeout=120) == 0
        finally:
            served.kill()
