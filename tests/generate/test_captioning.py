"""BLIP: embeddings, captions of true and decoded embeddings, and their scores, against slow references."""
import json
import types

import h5py
import numpy as np
import pandas
import pytest
import torch
from PIL import Image
from transformers import BertTokenizer, BlipConfig, BlipForConditionalGeneration, BlipImageProcessor, BlipVisionConfig

import decode_captions
import decode_captions_occluded
import img2feat_blip
from mini_nsd import scene_captions, scene_rendering, scene_sampling
from mini_nsd.training import blip as training
from utils import layout
from utils.errors import Problem
from utils.evaluate import caption_scores, evaluation_stage
from utils.features import extraction
from utils.generate import captioning
from utils.models import checkpoints, loading
from utils.storage import arrays, feature_shards, subject_matrices, text_files

CPU = torch.device("cpu")
ROIS = ["early", "lateral"]
IMAGES = 6


@pytest.fixture(scope="module")
def untrained():
    """A captioner of random weights, whose vocabulary is a few words."""
    torch.manual_seed(3)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"a red blue ball cube on the grass".split()]
    width = dict(hidden_size=32, intermediate_size=64, num_attention_heads=2)
    config = BlipConfig(
        caption_prompt="",
        text_config=dict(vocab_size=len(words) + 2, num_hidden_layers=2, max_position_embeddings=32,
                         bos_token_id=len(words), sep_token_id=3, eos_token_id=3, pad_token_id=0, initializer_range=0.5,
                         **width),
        vision_config=dict(image_size=128, patch_size=16, num_hidden_layers=2, initializer_range=0.5, **width))
    return captioning.Captioner(BlipForConditionalGeneration(config).eval(),
                                BertTokenizer(vocab={word: number for number, word in enumerate(words)}),
                                BlipImageProcessor(size={"height": 128, "width": 128}))


@pytest.fixture(scope="module")
def stimuli():
    return np.stack([scene_rendering.render(scene_sampling.sample(73, index)).image for index in range(IMAGES)])


@pytest.fixture
def world(tmp_path, monkeypatch, stimuli):
    """A working folder of a subject that saw IMAGES stimuli, the last four as test images, and NSD's part of it."""
    monkeypatch.setenv("NSD_MODELS", "tiny")
    monkeypatch.setenv("NSD_ROOT", str(tmp_path / "nsd"))
    annotations = tmp_path / "nsd/nsddata_stimuli/stimuli/nsd/annotations"
    annotations.mkdir(parents=True)
    said = [{"image_id": index, "caption": sentence}
            for index in range(IMAGES) for sentence in scene_captions.captions(scene_sampling.sample(73, index))]
    (annotations / "captions_train2017.json").write_text(json.dumps({"annotations": said}))
    with h5py.File(annotations.parent / "nsd_stimuli.hdf5", "w") as file:
        file["imgBrick"] = stimuli
    info = tmp_path / "nsd/nsddata/experiments/nsd/nsd_stim_info_merged.csv"
    info.parent.mkdir(parents=True)
    info.write_text("nsdId,cocoId,cocoSplit\n" + "".join(f"{index},{index},train2017\n" for index in range(IMAGES)))
    ws = layout.Workspace(tmp_path / "work", "subj01")
    for path, array in ((ws.stims, np.arange(IMAGES)), (ws.stims_ave, np.arange(IMAGES)),
                        (ws.stims_ave_test, np.arange(IMAGES) >= 2)):
        arrays.write_npy(path, array)
    yield ws
    loading.forget()


def arguments(ws, *more):
    return ["--workdir", str(ws.workdir), "--subject", "subj01", "--gpu", "-1", "--roi", *ROIS, *more]


def tiny_captioner():
    return captioning.Captioner(*loading.blip(CPU, torch.float32))


def test_published_blip_is_fed_240_px_and_gives_226_by_768():
    captioner = captioning.Captioner(
        types.SimpleNamespace(config=types.SimpleNamespace(vision_config=BlipVisionConfig())), None, None)
    assert (captioner.size, captioner.shape) == (240, (226, 768))


def test_pixels_are_prepared_as_the_image_processor_does(untrained, stimuli):
    expected = untrained.processor(images=list(stimuli), size={"height": 80, "width": 80},
                                   return_tensors="pt").pixel_values
    level = 1 / 255 / min(untrained.processor.image_std)  # the two resize to 8 bits with other rounding
    assert (untrained.prepare(stimuli) - expected).abs().max() <= 1.01 * level


def test_captions_from_embeddings_are_those_from_the_images(untrained, stimuli):
    pixels = untrained.prepare(stimuli)
    embeddings = untrained.embed(pixels)
    assert embeddings.shape == (IMAGES, 26, 32) and embeddings.dtype == torch.float32
    tokens = untrained.network.generate(pixel_values=pixels, interpolate_pos_encoding=True, num_beams=3, min_length=5,
                                        max_length=20, repetition_penalty=1.5)
    expected = [untrained.tokenizer.decode(row, skip_special_tokens=True) for row in tokens]
    assert untrained.caption(embeddings) == expected
    assert len(set(expected)) > 1


def test_published_prompt_generates_as_the_published_script_does(stimuli):
    """Their decode_captions.py and img2feat_blip.py, step by step:
    prompt in, [0, 1] pixels, the prompt cut off as text."""
    network, tokenizer, processor = _small_blip()
    captioner = captioning.Captioner(network, tokenizer, processor, "published")
    resized = [np.asarray(Image.fromarray(each).resize((80, 80), resample=Image.LANCZOS)) for each in stimuli]
    pixels = torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2) / 255
    assert torch.allclose(captioner.prepare(stimuli), pixels, atol=1e-6)
    embeddings = captioner.embed(captioner.prepare(stimuli))
    start = torch.tensor(tokenizer("a picture of ").input_ids[:-1])
    start[0] = network.config.text_config.bos_token_id
    tokens = network.text_decoder.generate(
        input_ids=start.repeat(len(stimuli), 1), encoder_hidden_states=embeddings, num_beams=3, max_length=20,
        min_length=5, repetition_penalty=1.5, eos_token_id=network.config.text_config.sep_token_id, pad_token_id=0,
        encoder_attention_mask=torch.ones(embeddings.shape[:2], dtype=torch.long))
    expected = [tokenizer.decode(row, skip_special_tokens=True)[len("a picture of "):].strip() for row in tokens]
    assert captioner.caption(embeddings) == expected
    bare = captioning.Captioner(network, tokenizer, processor)
    # The small model says itself how it learnt to start.
    assert bare.start == "" and bare.caption(embeddings) != expected


def _small_blip():
    return (BlipForConditionalGeneration.from_pretrained(checkpoints.TINY / "blip", dtype=torch.float32).eval(),
            BertTokenizer.from_pretrained(checkpoints.TINY / "blip"),
            BlipImageProcessor.from_pretrained(checkpoints.TINY / "blip"))


def test_a_checkpoint_that_says_nothing_starts_as_blips_authors_do(untrained):
    assert captioning.Captioner(types.SimpleNamespace(config=BlipConfig()), None, None).start == "a picture of "
    with pytest.raises(Problem, match="'a picture of ' is not in the vocabulary"):
        captioning.Captioner(untrained.network, untrained.tokenizer, untrained.processor, "published").caption(
            torch.zeros(1, 26, 32))


def test_captions_have_no_stray_spaces(monkeypatch):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"a man ' s dog , wet".split()]
    tokenizer = BertTokenizer(vocab={word: number for number, word in enumerate(words)})
    said = torch.tensor([[12, *tokenizer("a man's dog, wet").input_ids[1:]]])
    network = types.SimpleNamespace(
        config=BlipConfig(caption_prompt="", vision_config={"image_size": 128}), device=CPU, dtype=torch.float32,
        text_decoder=types.SimpleNamespace(generate=lambda **_: said))
    assert captioning.Captioner(network, tokenizer, None).caption(torch.zeros(1, 26, 768)) == ["a man's dog, wet"]


def test_a_caption_does_not_depend_on_its_batch(untrained, stimuli):
    embeddings = untrained.embed(untrained.prepare(stimuli))
    assert [untrained.caption(each[None])[0] for each in embeddings] == untrained.caption(embeddings)


def test_a_caption_file_reads_the_same_line_by_line_and_as_tab_separated(tmp_path):
    captions = [captioning.one_line(text) for text in ('a sign\tsays " stop "', 'a red, wet\nball "', "two' cubes")]
    (tmp_path / "captions.csv").write_text("".join(f"{caption}\n" for caption in captions))
    assert captioning.read(tmp_path / "captions.csv", 3, "x") == captions
    assert list(pandas.read_csv(tmp_path / "captions.csv", sep="\t", header=None)[0]) == captions
    for count in (2, 4):
        with pytest.raises(Problem, match="3 captions"):
            captioning.read(tmp_path / "captions.csv", count, "decode_captions.py")
    with pytest.raises(Problem, match="run decode_captions.py"):
        captioning.read(tmp_path / "none.csv", 3, "decode_captions.py")


def test_overlap_is_the_best_f1_of_shared_words():
    assert caption_scores.overlap("a red ball", ["a ball", "The red cube, a big one"]) == pytest.approx(2 * 2 / (3 + 2))
    assert caption_scores.overlap("a a a", ["a"]) == pytest.approx(2 * 1 / (3 + 1))
    assert caption_scores.overlap("a red ball", ["two dogs"]) == 0


def test_score_tells_right_captions_from_those_of_other_images():
    said = [["a red ball on grass"], ["two blue cubes"], ["one yellow star at night"], ["a pink ring in the snow"]]
    words = sorted({word for each in said for word in each[0].split()})

    def embed(sentences):
        return np.array([[word in each.split() for word in words] for each in sentences], float)

    right = caption_scores.score([each[0] for each in said], said, embed)
    wrong = caption_scores.score([said[(number + 1) % 4][0] for number in range(4)], said, embed)
    assert right["identification"]["accuracy"] == 1 and right["overlap"] == 1
    assert wrong["identification"]["accuracy"] < 0.5 and wrong["overlap"] < 0.2
    assert right["overlap_others"] == pytest.approx(np.mean(
        [caption_scores.overlap(said[i][0], said[j]) for i in range(4) for j in range(4) if i != j]))


def test_stage_stores_half_precision_embeddings_and_captions_of_them(world, stimuli):
    common = ["--workdir", str(world.workdir), "--gpu", "-1", "--batch_size", "2", "--precision", "float32"]
    img2feat_blip.main([*common, "--imgidx", "0", "4"])
    img2feat_blip.main(common)
    shards = feature_shards.Shards(layout.features(world.workdir, "blip"))
    found, captioner = shards.read(range(IMAGES), "x"), tiny_captioner()
    exact = captioner.embed(captioner.prepare(stimuli)).numpy()
    assert found.dtype == np.float16 and shards.attributes()["stored"] == "float16"
    assert np.allclose(found, exact, atol=2e-3 * np.abs(exact).max())
    path = layout.blip_captions(world.workdir, "nsd")
    args = types.SimpleNamespace(workdir=world.workdir, dataset="nsd")
    expected = captioner.caption(torch.from_numpy(found.astype(np.float32)))
    assert extraction.blip_captions(args) == {index: [caption] for index, caption in enumerate(expected)}
    whole = path.read_bytes()
    # As a killed run would have left it.
    text_files.write_json(path, dict(list(text_files.read_json(path).items())[:3]))
    img2feat_blip.main(common)
    assert path.read_bytes() == whole


def test_embeddings_go_to_a_folder_of_the_user_s_choice_and_are_read_from_there(world, tmp_path, command_line, stimuli):
    folder, pictures = tmp_path / "embeddings", tmp_path / "pictures"
    pictures.mkdir()
    for index, image in enumerate(stimuli):  # as the published pipeline for occluded images leaves them
        Image.fromarray(image // 2).save(pictures / f"{index:06}.jpg", quality=95)
    where = ["--workdir", world.workdir]
    done = command_line("img2feat_blip_occlusion.py", *where, "--gpu", -1, "--precision", "float32",
                        "--occluded_dir", pictures, "--outdir", folder)
    assert done.returncode == 0, done.stderr
    assert (not feature_shards.Shards(folder).missing(range(IMAGES))
            and not layout.features(world.workdir, "blip_occluded").exists())
    assert len(text_files.read_json(layout.blip_captions(world.workdir, "occluded"))) == IMAGES
    paired = ["make_subjstim_occluded.py", *where, "--subject", "subj01", "--featname", "blip_occluded", "--use_stim",
              "ave"]
    assert command_line(*paired).returncode == 1
    assert command_line(*paired, "--input_dir", folder).returncode == 0
    with subject_matrices.SubjectFeatures(world.subject_features("ave", "blip_occluded"), "x") as matrix:
        assert np.array_equal(matrix.features("te")[:],
                              feature_shards.Shards(folder).read(range(2, IMAGES), "x").reshape(IMAGES - 2, -1))


def test_the_twin_captions_whole_images_by_the_published_name(world, command_line, stimuli):
    captioner = tiny_captioner()
    embeddings = captioner.embed(captioner.prepare(stimuli[2:]))
    arrays.write_npy(world.scores(ROIS, "blip"), embeddings.flatten(1).numpy())
    done = command_line("decode_captions_occluded.py", *arguments(world, "--target", "blip", "--dataset", "original"))
    assert done.returncode == 0, done.stderr
    assert world.captions().read_text().splitlines() == captioner.caption(embeddings)
    assert command_line("decode_captions.py", *arguments(world, "--dataset", "other")).returncode == 2


def decode(world, target, dataset, values, main=decode_captions.main, more=()):
    control = f"shuffled{more[1]}" if more else None
    arrays.write_npy(world.scores(ROIS, target, dataset if dataset == "occluded" else None, control), values)
    main(arguments(world, "--dataset", dataset, *more))


def test_captions_are_of_the_decoded_embeddings_one_a_line(world, stimuli, capsys):
    captioner = tiny_captioner()
    embeddings = captioner.embed(captioner.prepare(stimuli[2:]))
    decode(world, "blip", "nsd", embeddings.flatten(1).numpy())
    text = world.captions().read_text()
    assert text.splitlines() == captioner.caption(embeddings) and text.endswith("\n")
    said = capsys.readouterr().out
    assert "chance 0.5" in said
    # evaluate.py scores the same captions by the same definition, and prints the same numbers.
    rows, read = evaluation_stage.caption_rows(world, CPU, 42)
    by_metric = {row["metric"]: row for row in rows if row["captions"] == "blip"}
    told = by_metric["CLIP text identification"]
    assert f"in {told['value'] / 100:.3f} [{told['low'] / 100:.2f}, {told['high'] / 100:.2f}] of cases" in said
    shared = by_metric["word F1"]
    assert f"(F1) {shared['value']:.2f}, with those of other images {shared['chance']:.2f}" in said
    assert read == [world.captions()]
    assert text_files.read_json(layout.sidecar(world.captions()))["options"]["prompt"] == "authors"
    decode_captions.main(arguments(world))
    assert "done before" in capsys.readouterr().out
    with pytest.raises(Problem, match="--overwrite"):
        arrays.write_npy(world.scores(ROIS, "blip"), embeddings.flatten(1).numpy() + 1)
        decode_captions.main(arguments(world))


def test_a_control_and_the_twin_write_files_of_their_own(world, stimuli):
    captioner = tiny_captioner()
    embeddings = captioner.embed(captioner.prepare(stimuli[2:]))
    decode(world, "blip", "nsd", embeddings.flip(0).flatten(1).numpy(), more=["--shuffle_trials", "7"])
    decode(world, "blip_occluded", "occluded", embeddings.flatten(1).numpy(), decode_captions_occluded.main)
    folder = world.decoded / "captions"
    assert sorted(path.name for path in folder.glob("captions_brain*.csv")) == [
        "captions_brain_blip_occluded_occluded.csv", "captions_brain_shuffled7.csv"]
    assert captioning.read(world.captions(control="shuffled7"), 4, "x") == captioner.caption(embeddings.flip(0))


def test_a_latent_is_captioned_by_way_of_its_image(world, stimuli):
    from utils import images
    from utils.generate import diffusion

    model = diffusion.LatentDiffusion(loading.stable_diffusion(CPU, torch.float32))
    latents = model.encode(model.prepare(stimuli[2:]))
    arrays.write_npy(world.scores(ROIS, "init_latent_occluded", "occluded"), latents.flatten(1).numpy())
    decode_captions_occluded.main(arguments(world, "--target", "init_latent_occluded", "--dataset", "occluded"))
    captioner = tiny_captioner()
    pictures = images.to_pixels(model.decode(latents), model.size)
    assert captioning.read(world.captions("init_latent_occluded", "occluded"), 4, "x") == captioner.caption(
        captioner.embed(captioner.prepare(pictures)))


def test_embeddings_of_other_pixels_than_the_prompt_asks_for_are_refused(world):
    common = ["--workdir", str(world.workdir), "--gpu", "-1", "--precision", "float32", "--skip_captions"]
    img2feat_blip.main(common)
    attributes = feature_shards.Shards(layout.features(world.workdir, "blip")).attributes()
    assert attributes["pixels"] == "normalised"
    with pytest.raises(Problem, match="pixels"):
        img2feat_blip.main([*common, "--prompt", "published"])
    arrays.write_npy(world.scores(ROIS, "blip"), np.zeros((4, 26 * 128), np.float32))
    text_files.write_json(layout.sidecar(world.scores(ROIS, "blip")), {"features": attributes})
    with pytest.raises(Problem, match="is of pixels normalised, not 0-1"):
        decode_captions.main(arguments(world, "--prompt", "published"))


def test_what_cannot_be_captioned_is_refused_by_name_and_leaves_no_file(world):
    refused = [("c_occluded", "blip_occluded or init_latent_occluded"), ("blip", "--target blip_occluded"),
               ("blip_occluded", "run ridge_occlusion.py --target blip_occluded --roi early lateral")]
    for target, todo in refused:
        with pytest.raises(Problem, match=todo):
            decode_captions_occluded.main(arguments(world, "--target", target), dataset="occluded")
    latent = np.zeros((4, 6400), np.float32)
    arrays.write_npy(world.scores(ROIS, "blip_occluded", "occluded"), latent)
    with pytest.raises(Problem, match="6400"):
        decode_captions_occluded.main(arguments(world), dataset="occluded")
    assert not list(world.decoded.rglob("*.csv"))


def test_the_small_blip_names_the_nearest_object():
    """The bar is 80% of held-out scenes; 5 points off for the smaller sample."""
    share, captions = training.names_front(training.load(), count=100)
    assert share >= 0.75
    assert len(set(captions)) > 50


@pytest.mark.slow
def test_blip_base_gives_226_by_768_and_captions_them(untrained, stimuli):
    published = BlipForConditionalGeneration(BlipConfig()).eval()
    captioner = captioning.Captioner(published, BertTokenizer(), BlipImageProcessor())
    embeddings = captioner.embed(captioner.prepare(stimuli[:1]))
    assert embeddings.shape == (1, 226, 768)
    assert len(captioner.caption(embeddings)) == 1
