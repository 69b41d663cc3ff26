"""The table of metrics, captions' scores and the held-out check agree with slow references; what is absent is named."""
import csv
import json

import h5py
import numpy as np
import pytest
import scipy.spatial.distance
import skimage.color
import skimage.metrics
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file

import ridge
from mini_nsd import scene_captions, scene_rendering, scene_sampling
from utils import layout
from utils.errors import Problem
from utils.evaluate import (
    caption_scores,
    held_out_clusters,
    identification,
    judging_networks,
    papers_table,
    picture_metrics,
)
from utils.models import checkpoints, loading
from utils.ridge import ridge_decoder
from utils.storage import arrays, text_files

CPU = torch.device("cpu")
COLUMNS = "run,method,dataset,control,metric,direction,value,low,high,chance,n_images,note"
IMAGES, SAMPLES, SIDE = 5, 2, 64


def common(workdir):
    return ["--workdir", str(workdir), "--subject", "subj01", "--gpu", "-1"]


@pytest.fixture
def evaluate(command_line):
    """evaluate.py as from its command line: returncode, stdout and stderr."""
    return lambda workdir, *arguments: command_line("evaluate.py", *common(workdir), *arguments)


def reconstruct(ws, run, seed, noise=60):
    """Save originals (simulated scenes) and noisy versions of them as a run's pictures."""
    random, folder = np.random.default_rng(seed), ws.samples(run)
    folder.mkdir(parents=True)
    text_files.write_json(layout.manifest(folder), {"model": "tiny/sd", "run": run})
    for image in range(IMAGES):
        rendered = scene_rendering.render(scene_sampling.sample(5, image)).image
        original = np.asarray(Image.fromarray(rendered).resize((SIDE, SIDE)))
        Image.fromarray(original).save(layout.original_image(folder, image))
        for repeat in range(SAMPLES):
            noisy = np.clip(original + random.normal(0, noise, original.shape), 0, 255).astype(np.uint8)
            Image.fromarray(noisy).save(layout.sample_image(folder, image, repeat))


@pytest.fixture
def ws(tmp_path, monkeypatch):
    """A working folder with a run, its recovery check, and the small models."""
    monkeypatch.setenv("NSD_MODELS", "tiny")
    made = layout.Workspace(tmp_path, "subj01")
    reconstruct(made, "cvpr", 1)
    reconstruct(made, "cvpr-true_features", 2, noise=10)
    yield made
    loading.forget()


def rows(ws, name="evaluation"):
    return list(csv.DictReader(open(ws.evaluation_result(name, "csv"))))


def row(ws, run, metric):
    return next(each for each in rows(ws) if (each["run"], each["metric"]) == (run, metric))


def load(folder):
    """(originals (n, H, W, 3), samples (n, k, H, W, 3)) uint8."""
    read = lambda path: np.asarray(Image.open(path))
    return (np.stack([read(layout.original_image(folder, i)) for i in range(IMAGES)]),
            np.stack([[read(layout.sample_image(folder, i, k)) for k in range(SAMPLES)] for i in range(IMAGES)]))


def identified(originals, samples):
    """Accuracy in percent per image, one pair of vectors at a time."""
    r = np.array([[np.mean([np.corrcoef(a, b)[0, 1] for b in each]) for each in samples] for a in originals])
    return [100 * np.mean([r[i, j] < r[i, i] for j in range(len(r)) if j != i]) for i in range(len(r))]


def test_ssim_is_that_of_a_loop_over_gaussian_windows_and_one_for_itself():
    random = np.random.default_rng(0)
    pictures = random.integers(0, 256, (2, 17, 17, 3)).astype(np.uint8)
    x, y = (picture / 255 @ [0.2125, 0.7154, 0.0721] for picture in pictures)
    offsets = np.arange(-5, 6)
    window = np.exp(-(offsets[:, None] ** 2 + offsets ** 2) / (2 * 1.5 ** 2))
    window /= window.sum()
    values = []
    for i in range(5, 12):
        for j in range(5, 12):
            a, b = (each[i - 5:i + 6, j - 5:j + 6] for each in (x, y))
            ma, mb = (window * a).sum(), (window * b).sum()
            variances = (window * (a * a + b * b)).sum() - ma ** 2 - mb ** 2
            covariance = (window * a * b).sum() - ma * mb
            values.append((2 * ma * mb + 1e-4) * (2 * covariance + 9e-4)
                          / ((ma ** 2 + mb ** 2 + 1e-4) * (variances + 9e-4)))
    assert picture_metrics.similarity(*pictures) == pytest.approx(np.mean(values), abs=1e-7)
    assert picture_metrics.similarity(pictures[0], pictures[0]) == pytest.approx(1)
    assert picture_metrics.pixel_correlation(pictures[0], pictures[0]) == pytest.approx(1)


def test_every_metric_is_that_of_one_pair_of_pictures_at_a_time(ws, evaluate):
    done = evaluate(ws.workdir)
    assert done.returncode == 0, done.stderr
    originals, samples = load(ws.samples("cvpr"))
    found = papers_table.columns(ws.evaluation_per_image("cvpr"))

    small = lambda picture: np.asarray(Image.fromarray(picture).resize((425, 425), Image.Resampling.BILINEAR))
    pairs = [[(small(original), small(sample)) for sample in each] for original, each in zip(originals, samples)]
    loops = {
        "PixCorr": lambda a, b: np.corrcoef(a.ravel().astype(float), b.ravel().astype(float))[0, 1],
        "SSIM": lambda a, b: skimage.metrics.structural_similarity(
            *(skimage.color.rgb2gray(each / 255) for each in (a, b)), gaussian_weights=True, sigma=1.5,
            use_sample_covariance=False, data_range=1.0)}
    for name, compare in loops.items():
        assert found[name] == pytest.approx([np.mean([compare(*pair) for pair in each]) for each in pairs], abs=1e-5)

    network, preprocessing = loading.classifier("alexnet", CPU)
    for name, depth in (("AlexNet(2)", 5), ("AlexNet(5)", 12)):
        def vector(picture):
            resized = judging_networks.resize(picture, preprocessing["image_size"]).astype(np.float32) / 255
            pixels = ((resized - preprocessing["mean"]) / preprocessing["std"]).astype(np.float32)
            return network.features[:depth](torch.from_numpy(pixels).permute(2, 0, 1)[None]).flatten().numpy()
        convolutions = [layer for layer in network.features[:depth] if isinstance(layer, torch.nn.Conv2d)]
        assert len(convolutions) == int(name[8]) and isinstance(network.features[depth - 1], torch.nn.ReLU)
        assert found[name] == pytest.approx(identified([vector(each) for each in originals],
                                                       [[vector(sample) for sample in each] for each in samples]))
    judges = judging_networks.Evaluators(["inception", "clip"], CPU)
    for name, feature in (("Inception", "inception"), ("CLIP", "clip")):
        one = lambda picture: judges(picture[None])[feature][0]
        assert found[name] == pytest.approx(identified([one(each) for each in originals],
                                                       [[one(sample) for sample in each] for each in samples]))
    clip = row(ws, "cvpr", "CLIP")
    low, high = identification.interval(found["CLIP"])
    assert [float(clip[each]) for each in ("value", "low", "high", "chance")] == pytest.approx(
        [found["CLIP"].mean(), low, high, 50], abs=1e-5)


def test_absent_metrics_and_runs_are_named_with_the_reason(ws, evaluate):
    layout.sample_image(ws.samples("cvpr-true_features"), 2, 1).unlink()
    done = evaluate(ws.workdir)
    assert done.returncode == 0, done.stderr
    text = ws.evaluation_result("evaluation", "csv").read_text()
    assert text.splitlines()[0] == COLUMNS
    table = rows(ws)
    assert len({(each["run"], each["metric"]) for each in table}) == len(table) == 10 * len(papers_table.METRICS)
    for each in table:
        assert bool(each["value"]) == (each["run"] == "cvpr" and each["metric"] not in ("EffNet-B", "SwAV"))
        assert each["value"] or each["note"]
    assert row(ws, "cvpr", "SwAV")["note"] == "absent: NSD_MODELS=tiny has no weights of role swav"
    assert row(ws, "cvpr-true_features", "SSIM")["note"].startswith("not run: unfinished: 1 samples")
    assert row(ws, "gan-occluded", "CLIP")["note"].startswith("not run: no pictures")
    assert row(ws, "cvpr-shuffled0", "CLIP")["control"] == "shuffled trials"
    assert "simulated subject" in done.stdout and "absent (" in done.stdout and "not run (" in done.stdout


def test_distances_come_from_local_weights_and_are_scipys(ws, evaluate, monkeypatch, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    networks = {"efficientnet": torchvision.models.efficientnet_b1().eval(),
                "swav": torchvision.models.resnet50().eval()}
    for role in ("alexnet", "clip", "inception"):
        (folder / role).symlink_to(checkpoints.TINY / role)
    for role in networks:
        (folder / role).mkdir()
    save_file(networks["efficientnet"].state_dict(), folder / "efficientnet/model.safetensors")
    state = {f"module.{key}": value for key, value in networks["swav"].state_dict().items() if "fc." not in key}
    torch.save(state | {"module.prototypes.weight": torch.zeros(2)}, folder / "swav/swav_800ep_pretrain.pth.tar")
    monkeypatch.setenv("NSD_MODELS", str(folder))
    weights = [folder / "swav", folder / "efficientnet"]
    for each in weights:
        each.rename(each.with_suffix(".away"))
    assert evaluate(ws.workdir).returncode == 0
    assert not row(ws, "cvpr", "SwAV")["value"]
    for each in weights:
        each.with_suffix(".away").rename(each)
    assert evaluate(ws.workdir).returncode == 0  # weights that came later are used
    found = papers_table.columns(ws.evaluation_per_image("cvpr"))
    originals, samples = load(ws.samples("cvpr"))
    bodies = {"EffNet-B": ("efficientnet", 255), "SwAV": ("swav", 224)}
    for name, (role, side) in bodies.items():
        network = networks[role]
        body = torch.nn.Sequential(*list(network.children())[:-1])
        def vector(picture):
            pixels = torchvision.transforms.functional.to_tensor(judging_networks.resize(picture, side).copy())
            pixels = torchvision.transforms.functional.normalize(pixels, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
            with torch.inference_mode():
                return body(pixels[None]).flatten().numpy().astype(np.float64)
        distances = [scipy.spatial.distance.correlation(vector(originals[0]), vector(sample)) for sample in samples[0]]
        expected = np.mean(distances)
        assert found[name][0] == pytest.approx(expected, rel=2e-3, abs=2e-6)
        assert row(ws, "cvpr", name)["direction"] == "lower"
    weights[0].rename(weights[0].with_suffix(".away"))
    lost = evaluate(ws.workdir)  # what they measured is not replaced by a gap
    assert lost.returncode == 1 and "--overwrite" in lost.stderr.splitlines()[-1]
    weights[0].with_suffix(".away").rename(weights[0])
    (folder / "swav/swav_800ep_pretrain.pth.tar").unlink()
    torch.save({"conv1.weight": state["module.conv1.weight"]}, folder / "swav/other.pth")
    loading.forget()
    with pytest.raises(Problem, match="lack"):
        loading.classifier("swav", CPU)


def test_features_already_there_are_used_only_if_of_the_same_pictures_and_network(ws, evaluate):
    folder = ws.identification("cvpr")
    random = np.random.default_rng(3)
    for stem in [f"{image:05}_{what}" for image in range(IMAGES) for what in ("org", "000", "001")]:
        arrays.write_npy(layout.image_feature(folder, stem, "clip"), random.normal(size=8).astype(np.float32))
    pictures = text_files.read_json(layout.manifest(ws.samples("cvpr")))
    networks = {"clip": checkpoints.identity("clip")}
    metric = next(metric for metric in papers_table.METRICS if metric.name == "CLIP")
    found = lambda: papers_table.stored(ws, "cvpr", metric, papers_table.Pictures(ws.samples("cvpr")), networks)
    assert found() is None
    text_files.write_json(layout.manifest(folder), {"pictures": pictures})
    text_files.write_json(layout.manifest(folder / "networks"), networks)
    assert evaluate(ws.workdir).returncode == 0
    used = float(row(ws, "cvpr", "CLIP")["value"])
    vectors = {what: [np.load(layout.image_feature(folder, f"{image:05}_{what}", "clip")) for image in range(IMAGES)]
               for what in ("org", "000", "001")}
    expected = identified(vectors["org"], list(zip(vectors["000"], vectors["001"])))
    assert used == pytest.approx(np.mean(expected), abs=1e-5)
    text_files.write_json(layout.manifest(folder / "networks"), {"clip": {"model": "another"}})
    assert found() is None
    text_files.write_json(layout.manifest(folder / "networks"), networks)
    text_files.write_json(layout.manifest(folder), {"pictures": {"model": "another"}})
    assert found() is None
    text_files.write_json(layout.manifest(folder), {"pictures": pictures})
    layout.image_feature(folder, "00003_001", "clip").unlink()
    assert found() is None


def test_a_run_is_measured_once_and_again_when_its_pictures_change(ws, evaluate, monkeypatch):
    assert evaluate(ws.workdir).returncode == 0
    before = row(ws, "cvpr", "PixCorr")["value"]
    measured = []
    measure = papers_table.measure
    monkeypatch.setattr(papers_table, "measure",
                        lambda ws, run, *rest: measured.append(run) or measure(ws, run, *rest))
    assert evaluate(ws.workdir).returncode == 0
    assert not measured and row(ws, "cvpr", "PixCorr")["value"] == before
    Image.fromarray(load(ws.samples("cvpr"))[0][0]).save(layout.sample_image(ws.samples("cvpr"), 0, 0))
    done = evaluate(ws.workdir)
    assert measured == ["cvpr"] and "cvpr: its pictures have changed" in done.stderr
    assert float(row(ws, "cvpr", "PixCorr")["value"]) > float(before)
    assert evaluate(ws.workdir, "--overwrite").returncode == 0
    assert measured == ["cvpr", "cvpr", "cvpr-true_features"]


def test_a_uniform_picture_is_one_clear_error(ws, evaluate):
    Image.new("RGB", (SIDE, SIDE)).save(layout.sample_image(ws.samples("cvpr"), 3, 1))
    done = evaluate(ws.workdir)
    assert done.returncode == 1 and done.stderr.splitlines()[-1].startswith("error: ") and not done.stdout
    assert not ws.evaluation_per_image("cvpr").exists()


# captions


def test_similarity_and_identification_of_captions_are_those_of_a_loop():
    random = np.random.default_rng(0)
    vectors = {}

    def embed(sentences):
        found = np.stack([vectors.setdefault(each, random.normal(size=6)) for each in sentences])
        return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)

    references = [["a red ball", "one ball"], ["two dogs", "dogs"], ["two dogs", "dogs"], ["a hill"]]
    captions = ["one ball", "dogs", "a hill at night", "a hill"]
    cosine = lambda a, b: 1 - scipy.spatial.distance.cosine(embed([a])[0], embed([b])[0])
    loop = np.array([[np.mean([cosine(caption, each) for each in theirs]) for theirs in references]
                     for caption in captions])
    found = caption_scores.score(captions, references, embed)
    wins = [np.mean([1.0 if loop[i, i] > loop[i, j] + 1e-9 else 0.5 if abs(loop[i, i] - loop[i, j]) < 1e-9 else 0.0
                     for j in range(4) if j != i]) for i in range(4)]
    assert (found["per_image"]["identification"] == pytest.approx(wins)
            and found["identification"]["accuracy"] == np.mean(wins))
    assert found["per_image"]["similarity"] == pytest.approx(np.diagonal(loop), abs=1e-6)
    assert found["similarity_others"] == pytest.approx(np.mean(loop[~np.eye(4, dtype=bool)]), abs=1e-6)
    assert found["per_image"]["overlap"][0] == 1 and found["overlap_others"] == pytest.approx(np.mean(
        [caption_scores.overlap(captions[i], references[j]) for i in range(4) for j in range(4) if i != j]))


def test_decoded_captions_and_peoples_are_judged_by_equally_many_of_the_others():
    """Each is the mean over leaving one true caption out; a decoder that says what one of the people said is no
    better."""
    random = np.random.default_rng(1)
    vectors = {}

    def embed(sentences):
        found = np.stack([vectors.setdefault(each, random.normal(size=6)) for each in sentences])
        return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)

    references = [["a red ball", "one ball on grass", "ball"], ["two dogs", "dogs", "a dog and a dog"],
                  ["a hill", "the hill at night", "night"]]
    people, decoded = (caption_scores.score(captions, references, embed)
                       for captions in (None, ["one red ball", "the dogs", "a night"]))
    alone = [[caption_scores.overlap(each[k], each[:k] + each[k + 1:]) for k in range(3)] for each in references]
    assert people["per_image"]["overlap"] == pytest.approx(np.mean(alone, axis=1))
    left = [np.mean([caption_scores.overlap(said, each[:k] + each[k + 1:]) for k in range(3)])
            for said, each in zip(["one red ball", "the dogs", "a night"], references)]
    assert decoded["per_image"]["overlap"] == pytest.approx(left)
    folds = []
    for k in range(3):
        kept = np.stack([np.delete(embed(each), k, axis=0).mean(0) for each in references])
        similar = np.stack([embed([each[k]])[0] for each in references]) @ kept.T
        folds.append([(similar[i, i] > np.delete(similar[i], i)).mean() for i in range(3)])
    assert people["per_image"]["identification"] == pytest.approx(np.mean(folds, axis=0))


# held-out clusters


def world(random, per_cluster=24, tests=8, spread=0.5):
    """(voxels, rows, features, test voxels, test features): three clusters, in features that follow voxels linearly."""
    centres = np.eye(3, 10) * 8
    stimuli = np.repeat(np.arange(3), per_cluster + tests)
    features = centres[stimuli] + spread * random.normal(size=(len(stimuli), 10))
    voxels = features @ random.normal(size=(10, 20)) + 0.05 * random.normal(size=(len(stimuli), 20))
    test = np.tile(np.arange(per_cluster + tests) >= per_cluster, 3)
    rows = np.tile(np.arange((~test).sum()), 2)
    features = features.astype(np.float32)
    return voxels[~test][rows], rows, features[~test], voxels[test], features[test]


def test_the_held_out_decoder_never_sees_the_clusters_training_stimuli():
    voxels, rows, features, test_voxels, test_features = world(np.random.default_rng(0))
    clusters = held_out_clusters.find_clusters(features, test_features, 3, seed=0)
    true = np.repeat(np.arange(3), 24)
    for cluster in range(3):
        removed = clusters.removed(cluster)
        assert len(set(true[removed])) == 1 and removed.sum() == 24  # the cluster's, all of them, and no other
        assert len(set(np.repeat(np.arange(3), 8)[clusters.test == cluster]) | set(true[removed])) == 1
        unseen = removed[rows]
        poisoned, spoilt = voxels.copy(), features.copy()
        poisoned[unseen], spoilt[removed] = np.nan, np.nan  # a decoder that read one of these would refuse
        found = held_out_clusters.predict(poisoned, rows, spoilt, ~removed, test_voxels)
        expected = np.empty_like(test_features)
        kept = np.flatnonzero(~removed)
        fit = ridge_decoder.Decoder(voxels[~unseen], np.searchsorted(kept, rows[~unseen]))
        fit.predict_to(features[kept], test_voxels, expected)
        assert np.array_equal(found, expected)
    nearest = clusters.removed(1, share=0.1)
    assert nearest.sum() == 7 and clusters.distance[nearest, 1].max() <= clusters.distance[~nearest, 1].min()


def test_a_decoder_that_only_picks_clusters_drops_to_chance_and_a_linear_one_does_not():
    voxels, rows, features, test_voxels, test_features = world(np.random.default_rng(1))
    clusters = held_out_clusters.find_clusters(features, test_features, 3, seed=0)
    random = np.random.default_rng(2)

    def picks(kept):
        """The training stimulus whose voxels are nearest."""
        seen = np.flatnonzero(kept)
        first = voxels[:len(features)][seen]
        nearest = [np.argmin(((first - each) ** 2).sum(1)) for each in test_voxels]
        return features[seen[nearest]] + 1e-3 * random.normal(size=(24, 10))

    def linear(kept):
        return held_out_clusters.predict(voxels, rows, features, kept, test_voxels)

    found, (within, among) = {}, held_out_clusters.METRICS
    for name, decoder in (("picks", picks), ("linear", linear)):
        full = decoder(np.ones(len(features), bool))
        table = held_out_clusters.table("c", "ventral", clusters, None, 0, full, decoder, test_features,
                                        features.mean(0))
        found[name] = {each["metric"]: each for each in table if each["cluster"] == "all"}
        assert {each["n_test"] for each in table} == {8, 24} and {each["n_train_removed"] for each in table} == {24}
        centred = lambda each: each - features.mean(0)
        r = np.corrcoef(centred(full), centred(test_features))[:24, 24:]
        groups = {within: [np.flatnonzero(clusters.test == clusters.test[i]) for i in range(24)],
                  among: [range(24)] * 24}
        for metric, candidates in groups.items():
            wins = [np.mean([r[i, j] < r[i, i] for j in each if j != i]) for i, each in enumerate(candidates)]
            assert found[name][metric]["full"] == pytest.approx(100 * np.mean(wins), abs=1e-3)
    picked = found["picks"][among]
    assert picked["full"] > 85 and picked["held_out"] < 60 and picked["low"] > 10
    assert found["linear"][within]["held_out"] > 85
    assert found["picks"][among + held_out_clusters.AT_RANDOM]["held_out"] > 85
    for each in found["linear"].values():
        assert each["low"] <= each["drop"] <= each["high"]
        assert each["drop"] == pytest.approx(each["full"] - each["held_out"])


def test_wide_features_are_clustered_as_narrow_ones_are(monkeypatch):
    _, _, features, _, test_features = world(np.random.default_rng(3), spread=0.3)
    directions = np.random.default_rng(4).normal(size=(10, 600))
    monkeypatch.setattr(held_out_clusters, "BLOCK_DIMS", 250)
    narrow = held_out_clusters.find_clusters(features, test_features, 3, 0)
    wide = held_out_clusters.find_clusters(*((each @ directions).astype(np.float16)
                                             for each in (features, test_features)), 3, 0)
    pairs = set(zip(np.r_[narrow.train, narrow.test], np.r_[wide.train, wide.test]))
    assert len(pairs) == 3
    with pytest.raises(Problem, match="fewer stimuli differ"):
        held_out_clusters.find_clusters(np.ones((5, 3)), np.ones((2, 3)), 2, 0)


@pytest.fixture
def whole(ws, monkeypatch, tmp_path):
    """The working folder with what the captions and the held-out check need besides, and NSD's captions."""
    random = np.random.default_rng(5)
    count, tests = 45, IMAGES
    stims = np.tile(np.arange(count), 2)
    origin = {"options": {"sessions": 1}, "sources": {"responses": "x"}}
    for path, array in ((ws.stims, stims), (ws.stims_ave, np.arange(count)),
                        (ws.stims_ave_test, np.arange(count) >= count - tests)):
        arrays.write_npy(path, array)
        text_files.write_json(layout.sidecar(path), origin)
    for target, roi, dims in (("c", "ventral", 9), ("init_latent", "early", 6)):
        features = (random.normal(size=(count, dims)) + 6 * np.eye(3, dims)[np.arange(count) % 3]).astype(np.float32)
        voxels = 100 * features @ random.normal(size=(dims, 12)) + random.normal(size=(count, 12))
        for split, some in (("tr", slice(0, count - tests)), ("te", slice(count - tests, count))):
            arrays.write_npy(ws.betas(roi, split), np.tile(voxels[some], (2, 1)).astype(np.int16))
            arrays.write_npy(ws.betas(roi, split, True), voxels[some].astype(np.float32))
            for average in (False, True):
                text_files.write_json(layout.sidecar(ws.betas(roi, split, average)), origin)
        path = ws.subject_features("each", target)
        path.parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(path, "w") as file:
            for split, ids in (("tr", np.arange(count - tests)), ("te", np.arange(count - tests, count))):
                file[f"{split}/features"], file[f"{split}/stim_ids"] = features[ids], ids
                file[f"{split}/trial_rows"] = np.tile(np.arange(len(ids)), 2)
        ridge.main([*common(ws.workdir), "--target", target, "--roi", roi])
    nsd = tmp_path / "nsd"
    monkeypatch.setenv("NSD_ROOT", str(nsd))
    annotations = nsd / "nsddata_stimuli/stimuli/nsd/annotations/captions_train2017.json"
    annotations.parent.mkdir(parents=True)
    said = {image: scene_captions.captions(scene_sampling.sample(5, image % IMAGES)) for image in range(count)}
    annotations.write_text(json.dumps({"annotations": [
        {"image_id": image, "caption": caption} for image in said for caption in said[image]]}))
    info = nsd / "nsddata/experiments/nsd/nsd_stim_info_merged.csv"
    info.parent.mkdir(parents=True)
    info.write_text("nsdId,cocoId,cocoSplit\n" + "".join(f"{image},{image},train2017\n" for image in range(count)))
    for arguments in ((), ("blip_occluded", "occluded")):
        text_files.write_text(ws.captions(*arguments), "".join(f"{said[count - tests + i][0]}\n" for i in range(tests)))
    return ws


def test_the_command_line_writes_every_table_and_resumes(whole, evaluate, monkeypatch):
    done = evaluate(whole.workdir, "--held_out_clusters", "3")
    assert done.returncode == 0, done.stderr
    assert done.stdout == whole.evaluation_result("evaluation", "md").read_text()
    checked = rows(whole, "held_out")
    assert list(checked[0]) == "target,roi,cluster,n_test,n_train_removed,metric,full,held_out,drop,low,high".split(",")
    with h5py.File(whole.subject_features("each", "c")) as file:
        clusters = held_out_clusters.find_clusters(file["tr/features"][:], file["te/features"][:], 3, 42)
    for each in checked:
        if each["cluster"] != "all":
            assert int(each["n_train_removed"]) == (clusters.train == int(each["cluster"])).sum()
            assert int(each["n_test"]) == (clusters.test == int(each["cluster"])).sum()
    assert {(each["target"], each["roi"]) for each in checked} == {("c", "ventral"), ("init_latent", "early")}
    said = rows(whole, "captions")
    assert [(each["captions"], each["dataset"]) for each in said][::3] == [
        ("blip", "nsd"), ("blip", "occluded"), ("people", "nsd")]
    for each in said:
        assert float(each["low"]) - 1e-6 <= float(each["value"]) <= float(each["high"]) + 1e-6
    assert all(text_files.read_json(layout.sidecar(whole.evaluation_result(name, "csv")))["simulated"]
               for name in ("evaluation", "captions", "held_out"))
    monkeypatch.setattr(held_out_clusters, "table", None)
    assert evaluate(whole.workdir, "--held_out_clusters", "3").stdout == done.stdout
    assert "Made before" in evaluate(whole.workdir).stdout
    other = evaluate(whole.workdir, "--held_out_clusters", "2")
    assert other.returncode == 1 and "--overwrite" in other.stderr.splitlines()[-1]


@pytest.mark.parametrize("flags, status, said", [
    (["--held_out_clusters", "1"], 2, "at least 2"), (["--held_out_share", "1.5"], 2, "between 0 and 1"),
    (["--held_out_clusters", "3"], 1, "make_subjstim.py")])
def test_what_the_check_lacks_is_said(ws, evaluate, flags, status, said):
    done = evaluate(ws.workdir, *flags)
    assert done.returncode == status and said in done.stderr.splitlines()[-1]


def test_nothing_to_evaluate_is_an_error(tmp_path, evaluate, monkeypatch):
    monkeypatch.setenv("NSD_MODELS", "tiny")
    done = evaluate(tmp_path)
    assert done.returncode == 1 and "diffusion_decoding.py" in done.stderr and not list(tmp_path.iterdir())
