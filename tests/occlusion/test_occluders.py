"""Occluders hide what was asked, where the seed says, and the files of occluded stimuli keep it so."""
import contextlib

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import run_pipeline
from tests import tiny_nsd
from utils import layout
from utils.errors import Problem
from utils.nsd import object_keys, s3, stimulus_file
from utils.occlusion import occluded_stimuli, occluders
from utils.pipeline import graph, status
from utils.storage import arrays

HEIGHT, WIDTH = 40, 56


@pytest.fixture(scope="module")
def stimuli(tmp_path_factory):
    """(path, images (7, H, W, 3)) of a small file laid out as NSD's."""
    path = tmp_path_factory.mktemp("stimuli") / "nsd_stimuli.hdf5"
    images = np.random.default_rng(0).integers(1, 256, (7, HEIGHT, WIDTH, 3), np.uint8)
    with h5py.File(path, "w") as file:
        file["imgBrick"] = images
    return path, images


@pytest.fixture
def run(command_line):
    """Run the stage as its command line does; gives returncode, stdout and stderr."""
    def command(*arguments):
        return command_line("generate_occluded_images.py", *arguments)
    return command


def refused(result, status=1):
    """The one line that a refused command says."""
    assert result.returncode == status, result.stderr
    lines = [line for line in result.stderr.splitlines() if "error: " in line]
    assert len(lines) == 1 and "Traceback" not in result.stderr
    return lines[0]


@settings(max_examples=300, deadline=None)
@given(kind=st.sampled_from(occluders.KINDS), place=st.sampled_from(occluders.PLACES), ratio=st.floats(0.1, 1),
       seed=st.integers(0, 2**40), index=st.integers(0, 72_999),
       shape=st.sampled_from([(425, 425), (64, 64), (40, 56), (33, 70)]))
def test_an_occluder_hides_the_area_asked_to_within_a_pixel_row(kind, place, ratio, seed, index, shape):
    hidden = occluders.mask(kind, ratio, place, seed, index, shape)
    assert hidden.shape == shape and hidden.dtype == bool
    assert abs(hidden.sum() - ratio**2 * hidden.size) <= max(shape)


def test_the_default_rectangle_is_centred_and_a_third_of_each_side():
    hidden = occluders.mask("rectangle", 0.3, "centre", 42, 0, (425, 425))
    rows, columns = np.flatnonzero(hidden.any(axis=1)), np.flatnonzero(hidden.any(axis=0))
    for along in (rows, columns):
        assert len(along) == round(0.3 * 425) and abs(along[0] - (424 - along[-1])) <= 1
    assert hidden.sum() == len(rows) * len(columns)


@pytest.mark.parametrize("kind", occluders.KINDS)
def test_centred_occluders_are_the_same_for_every_image_and_in_the_middle(kind):
    first, second = (occluders.mask(kind, 0.4, "centre", seed, index, (100, 100)) for seed, index in [(1, 2), (3, 4)])
    assert np.array_equal(first, second)
    for along in np.nonzero(first):
        assert abs(along.mean() - 49.5) <= 1


@pytest.mark.parametrize("kind", occluders.KINDS)
def test_random_places_differ_between_images_and_seeds_and_repeat_for_the_same_pair(kind):
    def at(seed, index):
        return occluders.mask(kind, 0.4, "random", seed, index, (100, 100))
    assert np.array_equal(at(1, 5), at(1, 5))
    assert len({at(1, index).tobytes() for index in range(8)}) > 4
    assert len({at(seed, 0).tobytes() for seed in range(8)}) > 4


def test_a_ratio_out_of_range_or_that_hides_nothing_is_refused():
    for ratio in (0, -0.1, 1.01, float("nan"), 0.001):
        for kind in occluders.KINDS:
            with pytest.raises(Problem, match="ratio"):
                occluders.mask(kind, ratio, "centre", 0, 0, (100, 100))


@pytest.mark.parametrize("fill", occluders.FILLS)
def test_pixels_outside_the_mask_are_untouched_and_those_inside_are_filled(fill):
    image = np.random.default_rng(1).integers(0, 256, (60, 60, 3), np.uint8)
    before = image.copy()
    hidden = occluders.mask("ellipse", 0.5, "centre", 0, 0, (60, 60))
    filled = occluders.apply(image, hidden, fill, 3, 4)
    assert np.array_equal(image, before)
    assert np.array_equal(filled[~hidden], image[~hidden])
    inside = filled[hidden]
    if fill == "noise":
        assert 100 < inside.mean() < 155 and inside.std() > 60
        assert np.array_equal(filled, occluders.apply(image, hidden, fill, 3, 4))
        assert not np.array_equal(filled, occluders.apply(image, hidden, fill, 3, 5))
    else:
        colour = {"black": 0, "grey": 128, "mean": image[~hidden].mean(axis=0).round()}[fill]
        assert (inside == colour).all()


def test_the_mean_fill_tells_nothing_of_what_it_hides():
    image = np.full((20, 20, 3), 10, np.uint8)
    hidden = occluders.mask("rectangle", 0.5, "centre", 0, 0, (20, 20))
    image[hidden] = 250
    assert (occluders.apply(image, hidden, "mean", 0, 0) == 10).all()
    everything = np.ones((20, 20), bool)
    assert (occluders.apply(image, everything, "mean", 0, 0) == occluders.GREY).all()


def test_the_hdf5_is_laid_out_as_nsds_with_masks_and_says_what_made_it(stimuli, tmp_path, run):
    path, images = stimuli
    out = tmp_path / "occluded.hdf5"
    done = run("--input_path", path, "--output_path", out, "--occluder", "patches", "--place", "random",
               "--fill", "noise", "--seed", 7)
    assert done.returncode == 0, done.stderr
    with h5py.File(out) as file:
        assert file["imgBrick"].shape == images.shape and file["imgBrick"].dtype == np.uint8
        assert file["imgBrick"].chunks == (1, *images.shape[1:]) and file["imgBrick"].compression == "gzip"
        assert file["mask"].dtype == bool and file["stim_ids"][:].tolist() == list(range(7))
        assert {key: file.attrs[key] for key in ("kind", "ratio", "place", "fill", "seed")} == {
            "kind": "patches", "ratio": 0.3, "place": "random", "fill": "noise", "seed": 7}
    with occluded_stimuli.OccludedStimuli(out) as occluded:
        order = [5, 0, 3]
        shown, masks = occluded.read(order), occluded.masks(order)
        for index, image, hidden in zip(order, shown, masks):
            wanted = occluders.mask("patches", 0.3, "random", 7, index, (HEIGHT, WIDTH))
            assert np.array_equal(hidden, wanted)
            assert np.array_equal(image, occluders.apply(images[index], wanted, "noise", 7, index))
        with pytest.raises(Problem, match="no image of 73k id 9"):
            occluded.read([1, 9])
    assert not layout.parts(out).exists()


def test_an_image_is_the_same_whatever_the_range_and_the_form(stimuli, tmp_path, run):
    path, _ = stimuli
    options = ("--place", "random", "--fill", "noise", "--occluder", "ellipse")
    assert run("--input_path", path, "--output_path", tmp_path / "all.h5", *options).returncode == 0
    assert run("--input_path", path, "--output_path", tmp_path / "some.h5", "--imgidx", 3, 6, *options).returncode == 0
    assert run("--h5_path", path, "--outdir", tmp_path / "png", "--start", 2, "--end", 5, *options).returncode == 0
    with occluded_stimuli.OccludedStimuli(tmp_path / "all.h5") as whole, \
            occluded_stimuli.OccludedStimuli(tmp_path / "some.h5") as some:
        assert some.ids.tolist() == [3, 4, 5] and some.count == 6
        assert np.array_equal(some.read([3, 4, 5]), whole.read([3, 4, 5]))
        assert sorted(image.name for image in (tmp_path / "png").glob("*.png")) == [
            "000002.png", "000003.png", "000004.png"]
        for index in (2, 3, 4):
            png = np.asarray(Image.open(layout.stimulus_image(tmp_path / "png", index)))
            assert np.array_equal(png, whole.read([index])[0])


def test_images_that_are_occluded_on_reading_are_those_that_would_have_been_written(stimuli, tmp_path, run):
    path, images = stimuli
    options = ("--input_path", path, "--place", "random", "--fill", "noise", "--occluder", "patches",
               "--image_size", 30)
    assert run("--output_path", tmp_path / "made.h5", *options).returncode == 0
    assert run("--output_path", tmp_path / "said.h5", *options, "--on_read").returncode == 0
    with occluded_stimuli.open_occluded(tmp_path / "made.h5") as made, \
            occluded_stimuli.open_occluded(tmp_path / "said.h5") as said:
        assert isinstance(said, occluded_stimuli.OccludedOnRead) and said.settings == made.settings
        assert said.ids.tolist() == made.ids.tolist() and (said.shape, said.stop) == (made.shape, made.stop)
        order = [5, 0, 3]
        assert np.array_equal(said.read(order), made.read(order))
        assert np.array_equal(said.masks(order), made.masks(order))
        with pytest.raises(Problem, match="no image of 73k id 9"):
            said.read([1, 9])
    refused = run("--output_path", tmp_path / "said.h5", *options)
    assert refused.returncode == 1 and "--overwrite" in refused.stderr
    with h5py.File(path, "a") as file:
        file["imgBrick"][0] = 255 - images[0]
    with pytest.raises(Problem, match="was made for other images"):
        occluded_stimuli.open_occluded(tmp_path / "said.h5")


def test_a_killed_run_resumes_where_it_stopped_and_ends_byte_identical(stimuli, tmp_path, monkeypatch):
    path, _ = stimuli
    monkeypatch.setattr(occluded_stimuli, "PART_IMAGES", 2)
    wanted = {"options": {"kind": "bars", "ratio": 0.4, "place": "random", "fill": "noise", "seed": 1}, "input": {}}
    done = []

    def die_at(limit):
        def progress(count):
            done.append(count)
            if len(done) == limit:
                raise KeyboardInterrupt
        return progress

    with stimulus_file.Stimuli(path) as images:
        straight, resumed = tmp_path / "straight.h5", tmp_path / "resumed.h5"
        assert occluded_stimuli.write_hdf5(images, range(7), straight, wanted, False, die_at(0))
        done.clear()
        with pytest.raises(KeyboardInterrupt):
            occluded_stimuli.write_hdf5(images, range(7), resumed, wanted, False, die_at(6))
        assert not resumed.exists()
        done.clear()
        assert occluded_stimuli.write_hdf5(images, range(7), resumed, wanted, False, die_at(0))
        assert done == [2, 2, 1, 1, 1]
        assert resumed.read_bytes() == straight.read_bytes()
        assert not occluded_stimuli.write_hdf5(images, range(7), resumed, wanted, False, die_at(0))


def test_finished_work_is_skipped_and_other_settings_are_refused(stimuli, tmp_path, run):
    path, _ = stimuli
    out = tmp_path / "occluded.hdf5"
    assert run("--input_path", path, "--output_path", out).returncode == 0
    before = out.stat().st_mtime_ns
    again = run("--input_path", path, "--output_path", out)
    assert again.returncode == 0 and "were there" in again.stdout and out.stat().st_mtime_ns == before
    line = refused(run("--input_path", path, "--output_path", out, "--fill", "grey"))
    assert "black" in line and "grey" in line and "--overwrite" in line
    assert "images" in refused(run("--input_path", path, "--output_path", out, "--imgidx", 0, 3))
    assert run("--input_path", path, "--output_path", out, "--fill", "grey", "--overwrite").returncode == 0
    with occluded_stimuli.OccludedStimuli(out) as occluded:
        assert occluded.settings["fill"] == "grey" and occluded.settings["ratio"] == 0.3


def test_pngs_of_two_occluders_never_share_a_folder(stimuli, tmp_path, run):
    path, _ = stimuli
    folder = tmp_path / "png"
    assert run("--h5_path", path, "--outdir", folder).returncode == 0
    again = run("--h5_path", path, "--outdir", folder, "--end", 3)
    assert "0 images written, 3 were there" in again.stdout
    assert "grey" in refused(run("--h5_path", path, "--outdir", folder, "--fill", "grey"))
    assert run("--h5_path", path, "--outdir", folder, "--fill", "grey", "--end", 2, "--overwrite").returncode == 0
    assert sorted(image.name for image in folder.glob("*.png")) == ["000000.png", "000001.png"]


def test_images_are_scaled_before_they_are_covered(stimuli, tmp_path, run):
    path, images = stimuli
    out, folder = tmp_path / "small.hdf5", tmp_path / "png"
    small = ["--image_size", 24, "--occluder", "bars"]
    assert run("--input_path", path, "--output_path", out, *small).returncode == 0
    assert run("--h5_path", path, "--outdir", folder, *small).returncode == 0
    hidden = occluders.mask("bars", 0.3, "centre", 42, 3, (24, 24))
    expected = np.array(Image.fromarray(images[3]).resize((24, 24), Image.Resampling.LANCZOS))
    expected[hidden] = 0
    with occluded_stimuli.OccludedStimuli(out) as occluded:
        assert occluded.shape == (7, 24, 24, 3) and occluded.settings["image_size"] == 24
        assert np.array_equal(occluded.read([3])[0], expected) and np.array_equal(occluded.masks([3])[0], hidden)
    assert np.array_equal(np.asarray(Image.open(folder / "000003.png")), expected)
    assert "image_size" in refused(run("--input_path", path, "--output_path", out, "--occluder", "bars"))
    for side in (0, 10**6):
        refused(run("--input_path", path, "--output_path", out, "--image_size", side), status=2)


def test_a_folder_of_pictures_is_as_the_file_of_the_same_images(stimuli, tmp_path, run):
    path, _ = stimuli
    out, folder = tmp_path / "occluded.hdf5", tmp_path / "png"
    chosen = ["--occluder", "ellipse", "--fill", "noise"]
    assert run("--input_path", path, "--output_path", out, *chosen).returncode == 0
    assert run("--h5_path", path, "--outdir", folder, *chosen).returncode == 0
    with occluded_stimuli.open_occluded(out) as file, occluded_stimuli.open_occluded(folder) as pictures:
        assert str(pictures.settings) == str(file.settings) and pictures.count == file.count
        assert np.array_equal(pictures.ids, file.ids) and np.array_equal(pictures.read([5, 2]), file.read([5, 2]))


def test_pictures_without_a_record_and_jpegs_are_read_and_nothing_is_guessed(tmp_path):
    with pytest.raises(Problem, match="holds no pictures like 000123.png or 000123.jpg"):
        occluded_stimuli.OccludedPictures(tmp_path)
    for index in (4, 9):
        Image.fromarray(np.full((8, 8, 3), 20 * index, np.uint8)).save(tmp_path / f"{index:06}.jpg")
    pictures = occluded_stimuli.OccludedPictures(tmp_path)
    assert pictures.ids.tolist() == [4, 9] and pictures.count == 10
    assert np.abs(pictures.read([9])[0].astype(int) - 180).max() <= 2
    with pytest.raises(Problem, match="no image of 73k id 5"):
        pictures.read([5])
    before = pictures.settings
    Image.new("RGB", (9, 8)).save(tmp_path / "000009.jpg")
    assert occluded_stimuli.OccludedPictures(tmp_path).settings != before
    with pytest.raises(Problem, match="000009.jpg is"):
        occluded_stimuli.OccludedPictures(tmp_path).read([4, 9])
    Image.new("RGB", (8, 8)).save(tmp_path / "000009.png")
    with pytest.raises(Problem, match="are one stimulus"):
        occluded_stimuli.OccludedPictures(tmp_path)


def test_bad_input_is_one_line_and_leaves_nothing(stimuli, tmp_path, run):
    path, images = stimuli
    out = tmp_path / "out" / "occluded.hdf5"
    cut = tmp_path / "cut.hdf5"
    cut.write_bytes(path.read_bytes()[:3000])
    foreign = tmp_path / "foreign.hdf5"
    with h5py.File(foreign, "w") as file:
        file["imgBrick"] = images.astype(np.float32)
    empty = tmp_path / "empty.hdf5"
    with h5py.File(empty, "w") as file:
        file["stimuli"] = [1]
    for source, said in [(tmp_path / "none.hdf5", "missing"), (cut, "not a whole HDF5"), (foreign, "float32"),
                         (empty, "no dataset imgBrick")]:
        assert said in refused(run("--input_path", source, "--output_path", out))
    assert "starts at 7" in refused(run("--input_path", path, "--output_path", out, "--imgidx", 7, 9))
    assert "hides no pixel" in refused(run("--input_path", path, "--output_path", out, "--occlusion_ratio", 0.001))
    assert "both input and output" in refused(run("--input_path", path, "--output_path", path))
    assert not out.exists()
    for wrong in (["--occlusion_ratio", 1.5], ["--h5_path", path], ["--start", 1], ["--seed", -1],
                  ["--h5_path", path, "--outdir", out, "--imgidx", 1], ["--occluder", "star"],
                  ["--h5_path", path, "--outdir", out, "--start", -1]):
        refused(run(*wrong), status=2)


def test_a_range_past_the_end_goes_to_the_last_image_and_says_so(stimuli, tmp_path, run):
    done = run("--h5_path", stimuli[0], "--outdir", tmp_path / "png", "--start", 5, "--end", 99)
    assert done.returncode == 0 and "there are 7 images" in done.stderr
    assert len(list((tmp_path / "png").glob("*.png"))) == 2


def test_a_foreign_or_broken_file_of_occluded_stimuli_is_refused(stimuli, tmp_path):
    path, _ = stimuli
    with pytest.raises(Problem, match="no stim_ids or no mask"):
        occluded_stimuli.OccludedStimuli(path)
    with pytest.raises(Problem, match="missing"):
        occluded_stimuli.OccludedStimuli(tmp_path / "none.hdf5")
    short = tmp_path / "short.hdf5"
    with h5py.File(short, "w") as file:
        file["imgBrick"], file["mask"], file["stim_ids"] = np.zeros((2, 4, 4, 3), np.uint8), np.zeros((1, 4, 4)), [0, 1]
    with pytest.raises(Problem, match="no stim_ids or no mask"):
        occluded_stimuli.OccludedStimuli(short)


# NSD_ROOT and subjects


@pytest.fixture(params=["folder", "S3"])
def nsd_root(request, tmp_path, monkeypatch):
    """A working folder in which subj01 saw stimuli 1, 4 and 6, subj02 4 and 9, and 12 stimuli below NSD_ROOT."""
    root, workdir = tmp_path / "nsd", tmp_path / "work"
    tiny_nsd.build_stimuli(root, 12)
    for subject, seen in (("subj01", [4, 1, 6]), ("subj02", [9, 4])):
        arrays.write_npy(layout.Workspace(workdir, subject).stims_ave, np.array(seen))
    with contextlib.ExitStack() as open_until_the_end:
        monkeypatch.setenv("NSD_ROOT", str(root))
        if request.param == "S3":
            server = open_until_the_end.enter_context(tiny_nsd.FaultyS3(root))
            monkeypatch.setenv("NSD_ROOT", f"s3://{tiny_nsd.BUCKET}")
            monkeypatch.setenv("AWS_ENDPOINT_URL_S3", server.url)
            s3.Root.from_env().fetch(object_keys.STIMULI_KEY, layout.stimuli(workdir), False)
        yield workdir


def status_of(*flags):
    command = ["generate_occluded_images.py", *map(str, flags)]
    return next(status.of(graph.of([command], run_pipeline.arguments)))


def test_stimuli_are_found_where_the_other_stages_find_them_and_only_seen_ones_are_made(run, nsd_root):
    flags = ["--workdir", nsd_root, "--subject", "subj01"]
    assert status_of(*flags)[0] == status.MISSING
    made = run(*flags)
    assert made.returncode == 0 and "3 images" in made.stdout, made.stderr
    with occluded_stimuli.OccludedStimuli(layout.occluded_stimuli(nsd_root)) as stimuli:
        assert stimuli.ids.tolist() == [1, 4, 6]
        first = stimuli.read([4])
    assert status_of(*flags)[0] == status.DONE

    both = ["--workdir", nsd_root, "--subject", "subj02"]  # one working folder serves several subjects
    assert status_of(*both) == (status.STALE,
                                "nsd_stimuli_occluded.hdf5 holds the stimuli of subj01, not yet of subj02")
    assert "made with options" in refused(run(*both, "--occlusion_ratio", "0.4"))  # not what the file grows by
    assert run(*both).returncode == 0
    with occluded_stimuli.OccludedStimuli(layout.occluded_stimuli(nsd_root)) as stimuli:
        assert stimuli.ids.tolist() == [1, 4, 6, 9]
        assert np.array_equal(stimuli.read([4]), first)
    assert "(were there)" in run(*flags).stdout and "(were there)" in run(*both).stdout


def test_a_file_of_all_stimuli_serves_every_subject(run, nsd_root):
    assert run("--workdir", nsd_root).returncode == 0
    assert "12 images (were there)" in run("--workdir", nsd_root, "--subject", "subj02").stdout


def test_the_pipeline_makes_the_occluded_images_of_its_subject_only(capsys):
    run_pipeline.main(["--subject", "subj02", "--datasets", "occluded", "--dry_run"])
    assert "generate_occluded_images.py --subject subj02" in capsys.readouterr().out


def test_status_compares_with_the_stimuli_where_the_stage_reads_them(run, nsd_root):
    flags = ["--workdir", nsd_root, "--subject", "subj01"]
    assert run(*flags).returncode == 0 and status_of(*flags)[0] == status.DONE
    with h5py.File(stimulus_file.stimuli_path(s3.Root.from_env(), nsd_root), "r+") as file:
        file["imgBrick"][0] = 255 - file["imgBrick"][0]
    state, note = status_of(*flags)
    assert state == status.STALE and "made with input digest_of_16" in note
    assert "made with input" in refused(run(*flags))


def test_status_of_the_whole_pipeline_takes_a_local_nsd(nsd_root, capsys):
    run_pipeline.main(["--subject", "subj01", "--datasets", "occluded", "--status", "--workdir", str(nsd_root)])
    line = next(line for line in capsys.readouterr().out.splitlines() if "generate_occluded" in line)
    assert line.startswith("missing")
