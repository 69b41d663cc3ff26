"""NSD's formats: captions, stimuli, tables, and readers that face arbitrary bytes."""
import argparse
import io
import json

import h5py
import numpy as np
import pytest
import scipy.io

import get_data
import img2feat_sd
from tests import tiny_nsd
from utils import layout
from utils.errors import Problem
from utils.features import extraction
from utils.nsd import atlases, coco_captions, mat5, nifti_volumes, object_keys, s3, stimulus_file

TRAIN = "nsddata_stimuli/stimuli/nsd/annotations/captions_train2017.json"
VAL = "nsddata_stimuli/stimuli/nsd/annotations/captions_val2017.json"


@pytest.fixture
def world(tmp_path, monkeypatch):
    folder = tiny_nsd.build(tmp_path / "nsd")
    tiny_nsd.put(folder, tiny_nsd.INFO, b",cocoId,cocoSplit,nsdId\n0,70,val2017,0\n1,70,train2017,1\n"
                                        b"2,71,train2017,2\n3,99,train2017,3\n")
    tiny_nsd.put(folder, TRAIN, coco((70, "a red square"), (71, "a disc "), (70, "a square"), (5, "not in NSD")))
    tiny_nsd.put(folder, VAL, coco((70, "another image")))
    monkeypatch.setenv("NSD_ROOT", str(folder))
    return folder


def coco(*pairs):
    return json.dumps({"annotations": [{"image_id": image, "caption": caption} for image, caption in pairs]}).encode()


def test_captions_belong_to_the_image_of_the_split(world):
    captions = coco_captions.captions(s3.Folder(world))
    assert captions == {0: ["another image"], 1: ["a red square", "a square"], 2: ["a disc"]}
    assert coco_captions.captions_of(captions, np.array([2, 0])) == [["a disc"], ["another image"]]


def test_an_image_without_captions_is_an_error_when_asked_for(world):
    with pytest.raises(Problem, match="73k id 3"):
        coco_captions.captions_of(coco_captions.captions(s3.Folder(world)), [1, 3])


def test_an_empty_caption_is_left_out_counted_and_said(world, capsys):
    tiny_nsd.put(world, TRAIN, coco((70, "a red square"), (70, " \n"), (71, ""), (71, "  ")))
    captions = coco_captions.captions(s3.Folder(world))
    assert captions[1] == ["a red square"] and captions.empty == {1: 1, 2: 2}
    assert "3 empty captions of 2 stimuli are left out (the first is 73k id 1)" in capsys.readouterr().err
    with pytest.raises(Problem, match="all 2 captions of 73k id 2 are empty"):
        coco_captions.captions_of(captions, [1, 2])


def test_the_features_record_how_many_captions_were_empty(world, tmp_path):
    args = argparse.Namespace(captions="coco", workdir=tmp_path)
    assert extraction.captions(args)[1] == {"captions": "coco"}
    tiny_nsd.put(world, TRAIN, coco((70, "a red square"), (70, " "), (71, "a disc")))
    assert extraction.captions(args)[1] == {"captions": "coco", "empty_captions_left_out": 1}


def test_captions_in_the_working_folder_stand_in_for_missing_ones(world, tmp_path):
    (world / VAL).unlink()
    with pytest.raises(Problem, match="captions_val2017.json does not exist.*annotations_trainval2017.zip"):
        coco_captions.captions(s3.Folder(world), tmp_path)
    tiny_nsd.put(tmp_path, "annotations/captions_val2017.json", coco((70, "mine")))
    assert coco_captions.captions(s3.Folder(world), tmp_path)[0] == ["mine"]


@pytest.mark.parametrize("key, content, said", [
    (tiny_nsd.INFO, b"a,b\n1,2\n", "lacks one of the columns"),
    (tiny_nsd.INFO, b"nsdId,cocoId,cocoSplit\n0,70,test2017\n", "line 2.*cocoSplit 'test2017'"),
    (tiny_nsd.INFO, b"nsdId,cocoId,cocoSplit\n73000,70,val2017\n", "line 2.*nsdId 73000"),
    (tiny_nsd.INFO, b"nsdId,cocoId,cocoSplit\nx,70,val2017\n", "line 2.*'x'"),
    (TRAIN, b"{", "not a COCO caption file"),
    (TRAIN, b"[]", "not a COCO caption file"),
    (TRAIN, coco((70, None)), "is no text"),
])
def test_bad_caption_files_are_named(world, key, content, said):
    tiny_nsd.put(world, key, content)
    with pytest.raises(Problem, match=said):
        coco_captions.captions(s3.Folder(world))


def test_a_table_may_carry_colours_and_comments():
    table = b"# comment\n\n  0 Unknown 0 0 0 0\n  1 V1v 255 0 0 0\n  2  V1d 0 255 0 0\n"
    assert atlases.label_table(table, "x") == {"V1v": 1, "V1d": 2}


@pytest.mark.parametrize("table, said", [(b"1 a\n1 b\n", "twice"), (b"1 a\n2 a\n", "twice"),
                                         (b"0 Unknown\n", "names no ROI"), (b"\xff\xfe", "not a label table"),
                                         (b"1\n", "not a label and a name")])
def test_bad_tables_are_named(table, said):
    with pytest.raises(Problem, match=said):
        atlases.label_table(table, "x")


def test_fsaverages_table_stands_in_for_the_subjects(world):
    (world / tiny_nsd.CTAB).unlink()
    tiny_nsd.put(world, "nsddata/freesurfer/fsaverage/label/streams.mgz.ctab", "\n".join(tiny_nsd.TABLE).encode())
    assert list(atlases.atlas(s3.Folder(world), "subj01").values) == list(layout.ROIS)


@pytest.mark.parametrize("name, table", [
    ("lh.streams", "nsddata/freesurfer/subj01/label/streams.mgz.ctab"),
    ("rh.floc-faces", "nsddata/freesurfer/fsaverage/label/floc-faces.mgz.ctab"),
    ("MTL", "nsddata/templates/MTL.ctab"), ("lh.thalamus", "nsddata/templates/thalamus.ctab")])
def test_hemispheres_and_volumetric_atlases_have_the_tables_that_nsd_gives_them(world, name, table):
    tiny_nsd.put(world, object_keys.atlas_key("subj01", name), tiny_nsd.nifti(tiny_nsd.labels().astype(np.float64)))
    tiny_nsd.put(world, table, "".join(f"{line}\t\n" for line in tiny_nsd.TABLE).encode())
    found = atlases.atlas(s3.Folder(world), "subj01", name)
    assert list(found.values) == list(layout.ROIS) and table in found.keys
    assert np.array_equal(found.labels, tiny_nsd.labels().T)


def test_labels_are_transposed_and_negative_ones_are_background(world):
    atlas = atlases.atlas(s3.Folder(world), "subj01")
    assert np.array_equal(atlas.labels, tiny_nsd.labels().T)
    assert atlas.grid.shape == tiny_nsd.SHAPE and -1 not in atlas.values.values()


@pytest.mark.parametrize("name", ["../streams", "a/b", "", ".hidden"])
def test_an_atlas_name_cannot_be_a_path(world, name):
    with pytest.raises(Problem, match="not the name of an atlas"):
        atlases.atlas(s3.Folder(world), "subj01", name)


def test_a_volume_that_unpacks_to_too_much_is_refused(world, monkeypatch):
    monkeypatch.setattr(nifti_volumes, "VOLUME_LIMIT", 200)
    with pytest.raises(Problem, match="unpacks to more than"):
        atlases.atlas(s3.Folder(world), "subj01")


# MAT files


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("dtype", ["f8", "f4", "i1", "u1", "i2", "u2", "i4", "u4", "i8"])
def test_mat_files_are_read_as_scipy_reads_them(dtype, compressed):
    values = {"wide": np.arange(1, 13).reshape(3, 4).astype(dtype), "one": np.array([[5]], dtype),
              "x": np.arange(24).reshape(2, 3, 4).astype(dtype), "text": "hello", "cell": np.array([1, "a"], object)}
    content = io.BytesIO()
    scipy.io.savemat(content, values, do_compression=compressed)
    found = mat5.read(content.getvalue(), ("wide", "one", "x", "none"))
    expected = scipy.io.loadmat(io.BytesIO(content.getvalue()))
    assert sorted(found) == ["one", "wide", "x"]
    for name, array in found.items():
        assert np.array_equal(array, expected[name]) and array.shape == expected[name].shape
    with pytest.raises(ValueError, match="text is not an array of real numbers"):
        mat5.read(content.getvalue(), ("text",))


# stimuli


def test_stimuli_are_read_in_the_order_asked_for(world):
    images = tiny_nsd.build_stimuli(world)
    with stimulus_file.Stimuli(stimulus_file.stimuli_path(s3.Folder(world), "unused")) as stimuli:
        assert stimuli.count == 20 and stimuli.shape == images.shape
        ids = [7, 3, 4, 19, 3, 0, 8]
        assert np.array_equal(stimuli.read(ids), images[ids])
        assert stimuli.read([]).shape == (0, *images.shape[1:])
        for wrong in (20, -1):
            with pytest.raises(Problem, match=f"no image of 73k id {wrong}"):
                stimuli.read([0, wrong])


def test_a_file_with_its_own_ids_is_read_by_them(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (3, 2, 2, 3)).astype(np.uint8)
    with h5py.File(tmp_path / "some.hdf5", "w") as file:
        file["imgBrick"], file["stim_ids"] = images, np.array([50, 7, 9])
    with stimulus_file.Stimuli(tmp_path / "some.hdf5") as stimuli:
        stimuli.check()
        assert np.array_equal(stimuli.read([9, 50]), images[[2, 0]])
        with pytest.raises(Problem, match="no image of 73k id 0"):
            stimuli.read([0])


def hdf5(path, **datasets):
    with h5py.File(path, "w") as file:
        for name, values in datasets.items():
            file[name] = values


@pytest.mark.parametrize("spoil, said", [
    (lambda path: path.write_bytes(b"x" * 1000), "not a whole HDF5"),
    (lambda path: path.write_bytes(path.read_bytes()[:-500]), "not a whole HDF5"),
    (lambda path: hdf5(path, other=np.zeros(3)), "no dataset imgBrick"),
    (lambda path: hdf5(path, imgBrick=np.zeros((2, 4, 4, 3), np.float32)), "not uint8"),
    (lambda path: hdf5(path, imgBrick=np.zeros((2, 4, 4, 4), np.uint8)), "not uint8"),
    (lambda path: hdf5(path, imgBrick=np.zeros((2, 4, 4, 3), np.uint8), stim_ids=[1]), "stim_ids of shape"),
    (lambda path: path.unlink(), "does not exist"),
])
def test_bad_stimuli_are_named(world, spoil, said):
    tiny_nsd.build_stimuli(world)
    spoil(world / tiny_nsd.STIMULI)
    with pytest.raises(Problem, match=said):
        stimulus_file.Stimuli(stimulus_file.stimuli_path(s3.Folder(world), "unused"))


def test_stimuli_are_fetched_once_from_s3_and_used_in_place_locally(world, tmp_path, monkeypatch, capsys):
    images = tiny_nsd.build_stimuli(world)
    img2feat_sd.main(["--workdir", str(tmp_path / "local")])
    assert "used in place" in capsys.readouterr().out
    assert not layout.stimuli(tmp_path / "local").exists()
    with tiny_nsd.FaultyS3(world) as server:
        monkeypatch.delenv("NSD_ROOT")
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", server.url)
        with pytest.raises(Problem, match="img2feat_sd.py"):
            stimulus_file.stimuli_path(s3.Root.from_env(), tmp_path / "remote")
        for _ in range(2):
            img2feat_sd.main(["--workdir", str(tmp_path / "remote")])
        assert len(server.gets("nsd_stimuli")) == 1
    assert "20 images, 6×6 px RGB, uint8" in capsys.readouterr().out
    with stimulus_file.Stimuli(stimulus_file.stimuli_path(s3.Bucket("s3://any"), tmp_path / "remote")) as stimuli:
        assert np.array_equal(stimuli.read(range(20)), images)


# get_data.py


def test_get_data_lists_sizes_and_their_sum(world, capsys):
    get_data.main(["ppdata", "subj01"])
    lines = capsys.readouterr().out.splitlines()
    expected = sorted(path for path in (world / "nsddata/ppdata/subj01").rglob("*") if path.is_file())
    assert [line.split()[1] for line in lines[:-1]] == [path.relative_to(world).as_posix() for path in expected]
    assert [int(line.split()[0].replace(",", "")) for line in lines[:-1]] == [path.stat().st_size for path in expected]
    assert lines[-1].split()[0] == f"{sum(path.stat().st_size for path in expected):,}"
    get_data.main(["betas", "subj01"])
    assert capsys.readouterr().out.count("betas_session") == 3


@pytest.mark.parametrize("argv", [[], ["ppdata"], ["ppdata", "subj09"], ["fetch"], ["delete", "subj01"]])
def test_get_data_with_bad_usage_exits_with_2(world, argv):
    with pytest.raises(SystemExit) as stopped:
        get_data.main(argv)
    assert stopped.value.code == 2


def test_get_data_fetches_below_the_working_folder(world, tmp_path, monkeypatch):
    with tiny_nsd.FaultyS3(world) as server:
        monkeypatch.delenv("NSD_ROOT")
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", server.url)
        get_data.main(["fetch", tiny_nsd.CTAB, "--workdir", str(tmp_path / "out")])
        with pytest.raises(Problem, match="leads out"):
            get_data.main(["fetch", "../../etc/passwd", "--workdir", str(tmp_path / "out")])
    assert (tmp_path / "out" / tiny_nsd.CTAB).read_bytes() == (world / tiny_nsd.CTAB).read_bytes()
