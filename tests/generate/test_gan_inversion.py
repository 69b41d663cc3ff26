"""VGG19's features, the inversion against bdpy's, and the GAN stages end to end on simulated scenes."""
import os
import shutil

import h5py
import numpy as np
import pytest
import scipy.io
import torch
from bdpy.dataform import DecodedFeatures
from bdpy.dl.torch import FeatureExtractor
from bdpy.dl.torch.models import VGG19, AlexNetGenerator, layer_map
from bdpy.feature import normalize_feature
from bdpy.recon.torch.icnn import reconstruct
from bdpy.recon.utils import clip_extreme, normalize_image
from PIL import Image

import make_subjstim_vgg19
import make_vgg19bdpy
import make_vgg19bdpy_occlusion
import make_vgg19fromdecode
import recon_icnn_image_vgg19_dgn_relu7gen_gd as recon
import ridge
from mini_nsd import scene_rendering, scene_sampling
from utils import layout
from utils.errors import Problem
from utils.generate import gan_inversion
from utils.models import caffe_nets, checkpoints, loading, winograd
from utils.nsd import object_keys
from utils.ridge import decoded_features
from utils.storage import arrays, feature_shards, subject_matrices, text_files

CPU = torch.device("cpu")
SUBJECT = ["--subject", "subj01"]
GPU = ["--gpu", "-1"]
SMALL = {"channels": (2, 3, 4, 4, 4), "image_size": 32, "hidden": 12, "outputs": 5}


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture
def nets():
    """A random encoder for 32 px and a random generator of 64 px, whose pictures have to be cropped."""
    encoder = caffe_nets.NarrowVGG19(**SMALL).eval().requires_grad_(False)
    generator = caffe_nets.NarrowGenerator(12, 10, (6, 4, 5, 4, 4, 3, 3, 4, 4), side=1).eval().requires_grad_(False)
    for module in [*encoder.modules(), *generator.modules()]:
        if hasattr(module, "weight"):
            torch.nn.init.normal_(module.weight, std=1.5 / module.weight[0].numel() ** 0.5)
    generator.deconv[-1].weight *= 50
    bound = torch.linspace(0.5, 3, 12)
    return (caffe_nets.Encoder(encoder, 32, torch.tensor([104.0, 117.0, 123.0]), CPU),
            caffe_nets.Generator(generator, bound, CPU))


def pictures(count, size=40, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3)).astype(np.uint8)


# The numerics, against bdpy


def test_a_batch_is_inverted_as_bdpy_inverts_each_picture(nets, tmp_path, capsys):
    encoder, generator = nets
    targets = encoder.activations(encoder.prepare(pictures(3)), gan_inversion.LAYERS)
    start = gan_inversion.initial_features(42, range(3), 12)
    made = gan_inversion.invert(encoder, generator, targets, start, n_iter=6).numpy()
    for index in range(3):
        own = {layer: target[index:index + 1].numpy() for layer, target in targets.items()}
        weights = np.array([1 / np.linalg.norm(target) ** 2 for target in own.values()])
        theirs = reconstruct(
            own, encoder.network, layer_mapping=layer_map("vgg19"), generator=generator.network, n_iter=6,
            lr=(2.0, 1e-10), momentum=(0.9, 0.9), decay=(0.01, 0.01),
            layer_weights=dict(zip(own, weights / weights.sum())), image_size=(32, 32, 3),
            initial_feature=start[index].numpy(), feature_upper_bound=generator.bound.numpy(),
            feature_lower_bound=0.0, output_dir=str(tmp_path), save_snapshot=False)
        np.testing.assert_allclose(made[index], theirs, atol=1e-3 * np.abs(theirs).max())
    assert np.abs(made[0] - made[1]).max() > 1


def test_the_generator_input_stays_between_zero_and_the_bound(nets):
    encoder, generator = nets
    seen = []
    generator.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().clone()))
    targets = encoder.activations(encoder.prepare(pictures(2)), gan_inversion.LAYERS)
    gan_inversion.invert(encoder, generator, targets, gan_inversion.initial_features(1, range(2), 12), n_iter=5)
    assert seen[0].min() < 0  # the start is as bdpy's, a normal draw
    assert all(z.min() >= 0 and (z <= generator.bound).all() for z in seen[1:])
    assert any((z == generator.bound).any() for z in seen[1:])


no_winograd = pytest.mark.skipif(not winograd.is_there(), reason="this PyTorch has no NNPACK; runs where it has")


@no_winograd
def test_winograd_gives_the_direct_convolution_and_its_gradient():
    layer = torch.nn.Conv2d(64, 70, 3, padding=1).requires_grad_(False)
    direct, value = (torch.randn(2, 64, 28, 30).requires_grad_() for _ in range(2))
    direct.data[:] = value.data
    ours, theirs = winograd.run(layer, value), layer(direct)
    assert not torch.equal(ours, theirs)  # it is another way
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4 * float(theirs.detach().abs().max()))
    slope = torch.randn_like(theirs)
    found, true = torch.autograd.grad(ours, value, slope)[0], torch.autograd.grad(theirs, direct, slope)[0]
    torch.testing.assert_close(found, true, rtol=0, atol=1e-4 * float(true.abs().max()))


@no_winograd
def test_a_vae_of_stable_diffusions_width_is_the_same_but_for_rounding_and_a_small_one_to_the_bit():
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    config = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    for channels, side in (((128, 128), 48), ((32, 64), 48), ((128, 128), 32)):
        with torch.inference_mode():
            vae = AutoencoderKL(block_out_channels=channels, **config).eval()
            picture = torch.randn(1, 3, side, side)
            plain = vae.encode(picture).latent_dist.mean, vae.decode(torch.ones(1, 4, side // 2, side // 2)).sample
            winograd.faster(vae)
            fast = vae.encode(picture).latent_dist.mean, vae.decode(torch.ones(1, 4, side // 2, side // 2)).sample
        for one, other in zip(plain, fast):
            assert torch.equal(one, other) == (channels[0] < 128 or side < 40)
            assert torch.allclose(one, other, atol=1e-4 * float(one.abs().max()))


@no_winograd
@pytest.mark.parametrize("layer, side", [
    (torch.nn.Conv2d(64, 64, 3, padding=1), 14), (torch.nn.Conv2d(3, 64, 3, padding=1), 40),
    (torch.nn.Conv2d(64, 64, 3), 40), (torch.nn.Conv2d(64, 64, 3, padding=1, stride=2), 40), (torch.nn.ReLU(), 40)])
def test_other_layers_are_computed_by_themselves(layer, side):
    value = torch.randn(1, getattr(layer, "in_channels", 64), side, side)
    assert torch.equal(winograd.run(layer, value), layer(value))


def test_the_learning_rate_is_that_of_the_first_step(nets):
    encoder, generator = nets
    targets = encoder.activations(encoder.prepare(pictures(2)), gan_inversion.LAYERS)
    start = gan_inversion.initial_features(0, range(2), 12)
    published, slow = (gan_inversion.invert(encoder, generator, targets, start, 3, learning_rate=rate)
                       for rate in (2.0, 0.1))
    assert torch.equal(published, gan_inversion.invert(encoder, generator, targets, start, 3))
    assert not torch.equal(published, slow)


def test_inversion_lowers_the_error(nets):
    encoder, generator = nets
    true = generator.network(torch.rand(4, 12) * generator.bound)
    targets = encoder.activations(gan_inversion.central(true, 32), gan_inversion.LAYERS)
    errors = []
    for n_iter in (1, 60):
        made = gan_inversion.invert(encoder, generator, targets, gan_inversion.initial_features(0, range(4), 12),
                                    n_iter)
        errors.append(float((encoder.activations(made, ["conv1_2"])["conv1_2"] - targets["conv1_2"]).square().mean()))
    assert errors[1] < 0.5 * errors[0]


@pytest.mark.parametrize("shape", [(6, 5, 5), (40,)])
def test_decoded_features_are_shifted_and_scaled_as_in_the_cookbook(shape):
    found = np.random.default_rng(0).normal(3, 2, (3, *shape)).astype(np.float32)
    ours = gan_inversion.shifted_and_scaled(torch.from_numpy(found), 7.5).numpy()
    for own, feature in zip(ours, found):
        theirs = normalize_feature(feature, channel_wise_mean=False, channel_wise_std=False, channel_axis=0,
                                   shift="self", scale=7.5, std_ddof=1)
        np.testing.assert_allclose(own, theirs, rtol=1e-4, atol=1e-4)


def test_pictures_are_stretched_as_in_the_cookbook():
    made = np.random.default_rng(0).normal(100, 80, (2, 16, 16, 3)).astype(np.float32)
    for own, picture in zip(gan_inversion.to_uint8(made, "stretch"), made):
        theirs = normalize_image(clip_extreme(picture, pct=4))
        assert np.abs(own.astype(int) - theirs).max() <= 1
        assert own.min() == 0 and own.max() == 255


def test_trusted_levels_are_clipped_only():
    made = np.float32([-20, 0.4, 99.6, 255.2, 300]).reshape(1, 5, 1, 1)
    assert gan_inversion.to_uint8(made, "clip").ravel().tolist() == [0, 0, 100, 255, 255]


def test_a_start_depends_on_seed_and_image_alone():
    both = gan_inversion.initial_features(7, [3, 5], 12)
    assert torch.equal(both[1], gan_inversion.initial_features(7, [5], 12)[0])
    assert not torch.equal(both[1], gan_inversion.initial_features(8, [5], 12)[0])
    assert abs(float(gan_inversion.initial_features(0, range(50), 400).std()) - 1) < 0.02


# The encoder


def test_preprocessing_is_bgr_minus_the_mean_and_its_inverse(nets):
    encoder, _ = nets
    red = np.zeros((1, 40, 40, 3), np.uint8)
    red[..., 0] = 200
    prepared = encoder.prepare(red)
    assert prepared.shape == (1, 3, 32, 32) and prepared.dtype == torch.float32
    assert prepared[0, :, 0, 0].tolist() == [-104, -117, 200 - 123]  # blue, green, red
    np.testing.assert_allclose(encoder.pixels(prepared)[0, 5, 5], [200, 0, 0], atol=1e-4)


def test_layers_are_those_that_bdpy_names(nets):
    encoder, _ = nets
    inputs = encoder.prepare(pictures(1))
    names = list(layout.VGG19_LAYERS)
    theirs = FeatureExtractor(encoder.network, [layer_map("vgg19")[name] for name in names]).run(inputs)
    ours = encoder.activations(inputs, names)
    for name in names:
        np.testing.assert_array_equal(ours[name].numpy(), theirs[layer_map("vgg19")[name]])
    assert ours["conv1_1"].min() < 0 and ours["fc7"].min() < 0  # before the ReLU
    assert encoder.shapes(["conv4_4", "fc8"]) == {"conv4_4": (4, 4, 4), "fc8": (5,)}


def test_narrow_networks_have_bdpys_layers(monkeypatch):
    monkeypatch.setattr(torch.nn.Module, "to", lambda module, *_: module)  # bdpy's generator moves itself
    with torch.device("meta"):
        full, narrow = VGG19(), caffe_nets.NarrowVGG19((64, 128, 256, 512, 512), 224, 4096, 1000)
        whole = AlexNetGenerator()
        wide = caffe_nets.NarrowGenerator(4096, 4096, (256, 256, 512, 256, 256, 128, 128, 64, 32), 4)
    assert {name: value.shape for name, value in narrow.state_dict().items()} == {
        name: value.shape for name, value in full.state_dict().items()}
    ours = {name: value.shape for name, value in wide.state_dict().items()}
    assert ours == {name: value.shape for name, value in whole.state_dict().items() if name in ours}
    assert [str(module) for module in narrow.features] == [str(module) for module in full.features]


# Published weights


def test_the_hub_is_refused_with_where_to_get_the_weights(monkeypatch):
    monkeypatch.setenv("NSD_MODELS", "hub")
    loading.forget()
    with pytest.raises(Problem, match="VGG_ILSVRC_19_layers.pt.*figshare.*NSD_MODELS=FOLDER"):
        loading.vgg19(CPU)
    with pytest.raises(Problem, match="generator_relu7.pt.*fc7.txt"):
        loading.generator(CPU)


def test_missing_and_wrong_weights_are_named(tmp_path):
    with pytest.raises(Problem, match="VGG_ILSVRC_19_layers.pt is missing"):
        caffe_nets.load_encoder(tmp_path, CPU)
    torch.save({"features.0.weight": torch.zeros(3)}, tmp_path / "VGG_ILSVRC_19_layers.pt")
    with pytest.raises(Problem, match="does not hold the weights of a VGG19"):
        caffe_nets.load_encoder(tmp_path, CPU)


def test_nothing_is_unpickled(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"features.0.weight": Evil()}, tmp_path / "VGG_ILSVRC_19_layers.pt")
    with pytest.raises(Problem, match="does not hold the weights"):
        caffe_nets.load_encoder(tmp_path, CPU)
    assert not (tmp_path / "ran").exists()


def test_a_bound_of_another_size_is_refused(nets, tmp_path):
    config = {"input_size": 12, "hidden": 10, "channels": (6, 4, 5, 4, 4, 3, 3, 4, 4), "side": 1}
    caffe_nets.save(nets[1].network, config, tmp_path)
    with pytest.raises(Problem, match="fc7.txt is missing"):
        caffe_nets.load_generator(tmp_path, CPU)
    caffe_nets.save_bound(np.ones(11), tmp_path)
    with pytest.raises(Problem, match="11 bounds for 12 units"):
        caffe_nets.load_generator(tmp_path, CPU)
    caffe_nets.save_bound(np.ones(12), tmp_path)
    assert caffe_nets.load_generator(tmp_path, CPU).bound.tolist() == [1] * 12


@pytest.mark.slow
def test_the_published_architectures_run_through_the_same_functions(tmp_path, monkeypatch):
    (tmp_path / "vgg19").mkdir()
    (tmp_path / "generator" / "act_range" / "3x").mkdir(parents=True)
    torch.save(VGG19().state_dict(), tmp_path / "vgg19" / "VGG_ILSVRC_19_layers.pt")
    torch.save(AlexNetGenerator().state_dict(), tmp_path / "generator" / "generator_relu7.pt")
    np.savetxt(tmp_path / "generator" / "act_range" / "3x" / "fc7.txt", np.full((1, 4096), 5.0))
    monkeypatch.setenv("NSD_MODELS", str(tmp_path))
    loading.forget()
    encoder, generator = loading.vgg19(CPU), loading.generator(CPU)
    targets = encoder.activations(encoder.prepare(pictures(1, 425)), gan_inversion.LAYERS)
    assert targets["conv1_2"].shape == (1, 64, 224, 224) and targets["fc8"].shape == (1, 1000)
    made = gan_inversion.invert(encoder, generator, targets, gan_inversion.initial_features(0, [0], 4096), n_iter=2)
    assert gan_inversion.to_uint8(encoder.pixels(made), generator.levels).shape == (1, 224, 224, 3)
    loading.forget()


# The stages, on the small models


TRAIN, TEST = 6, 4
RED = [index for index in range(400) if scene_sampling.sample(11, index).objects[0].colour == "red"
       and scene_sampling.sample(11, index).background.kind in ("snow", "meadow")]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A working folder with simulated scenes as stimuli: each shown twice, the first four shared; red in front."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("gan")
    images = np.stack([scene_rendering.render(scene_sampling.sample(11, index), 128).image
                       for index in RED[:TRAIN + TEST]])
    stimuli = folder / object_keys.STIMULI_KEY
    stimuli.parent.mkdir(parents=True)
    with h5py.File(stimuli, "w") as file:
        file["imgBrick"] = images
    with h5py.File(layout.occluded_stimuli(folder), "w") as file:
        file["imgBrick"], file["mask"], file["stim_ids"] = images // 2, images[..., 0] > 9, np.arange(len(images))
    ws = layout.Workspace(folder, "subj01")
    order = np.random.default_rng(0).permutation(TRAIN + TEST)
    arrays.write_npy(ws.stims, np.concatenate([order, order]))
    arrays.write_npy(ws.stims_ave, order)
    arrays.write_npy(ws.stims_ave_test, order < TEST)
    return folder


@pytest.fixture
def at(world, monkeypatch):
    monkeypatch.setenv("NSD_MODELS", "tiny")
    monkeypatch.setenv("NSD_ROOT", str(world))
    return world, layout.Workspace(world, "subj01"), ["--workdir", str(world)]


@pytest.fixture
def extracted(at):
    make_vgg19bdpy.main([*at[2], *GPU, "--imgidx", "0", "73000", "--precision", "float32"])
    make_subjstim_vgg19.main([*at[2], *SUBJECT, "--layer", "all"])
    return at


@pytest.fixture
def inverted(extracted):
    folder, ws, where = extracted
    make_vgg19fromdecode.main([*where, *SUBJECT, "--true_features"])
    recon.main([*where, *GPU, "--true_features", "--n_iter", "60"])
    return extracted


def test_extraction_stores_every_layer_in_half_precision(extracted):
    folder, ws, _ = extracted
    encoder = loading.vgg19(CPU)
    with h5py.File(folder / object_keys.STIMULI_KEY) as file:
        inputs = encoder.prepare(file["imgBrick"][:])
    for layer, true in encoder.activations(inputs, gan_inversion.LAYERS).items():
        shards = feature_shards.Shards(layout.features(folder, layer))
        found = shards.read(range(len(inputs)), "")
        assert found.dtype == np.float16 and shards.attributes()["stored"] == "float16"
        np.testing.assert_allclose(found, true.numpy(), rtol=2e-3, atol=1e-3 * float(true.abs().max()))
    with subject_matrices.SubjectFeatures(ws.subject_features("ave", "fc7"), "") as matrix:
        np.testing.assert_array_equal(matrix.features("te")[:],
                                      feature_shards.Shards(layout.features(folder, "fc7")).read(matrix.stimuli("te"),
                                                                                                 ""))


def test_a_red_object_stays_red_from_stimulus_to_tiff(inverted):
    folder, ws, _ = inverted
    order = arrays.read_npy(ws.stims_ave)[arrays.read_npy(ws.stims_ave_test)]
    for index, stimulus in enumerate(order):
        picture = np.asarray(Image.open(ws.gan_image(index, control="true_features"))).astype(float)
        assert picture.shape == (64, 64, 3)
        drawn = scene_rendering.render(scene_sampling.sample(11, RED[stimulus]), 64)
        red, green, blue = picture[drawn.labels == 0].mean(0)
        assert red > 1.5 * blue and red > 1.3 * green


def test_pictures_resemble_their_originals(inverted):
    folder, ws, _ = inverted
    order = arrays.read_npy(ws.stims_ave)[arrays.read_npy(ws.stims_ave_test)]
    true = np.stack([scene_rendering.render(scene_sampling.sample(11, RED[s]), 64).image for s in order])
    true = true.reshape(TEST, -1).astype(float)
    made = np.stack([np.asarray(Image.open(ws.gan_image(i, control="true_features"))) for i in range(TEST)])
    r = np.corrcoef(true, made.reshape(TEST, -1))[:TEST, TEST:]
    assert (r.argmax(1) == np.arange(TEST)).all() and np.diag(r).min() > 0.6


def test_mat_files_are_bdpys(inverted):
    folder, ws, _ = inverted
    path = ws.gan_features("conv2_2", 1, control="true_features")
    theirs = DecodedFeatures(str(path.parents[3]), squeeze=False)
    found = theirs.get(layer="conv2_2", subject="subj01", roi="streams", image="VGG19-conv2_2-subj01-streams-000001")
    shapes = loading.vgg19(CPU).shapes(["conv2_2", "fc6"])
    assert found.shape == (1, *shapes["conv2_2"]) and found.dtype == np.float32
    with subject_matrices.SubjectFeatures(ws.subject_features("ave", "conv2_2"), "") as matrix:
        np.testing.assert_array_equal(found.ravel(), matrix.features("te")[1])
    assert gan_inversion.read_mat(ws.gan_features("fc6", 0, control="true_features"), shapes["fc6"],
                                  "").shape == shapes["fc6"]


def test_the_picture_is_kept_as_numbers_before_its_levels_are_set(inverted):
    folder, ws, _ = inverted
    for index in range(TEST):
        found = scipy.io.loadmat(ws.gan_pixels(index, control="true_features"))
        shown = np.asarray(Image.open(ws.gan_image(index, control="true_features")))
        assert found["recon_image"].dtype == np.float32 and found["recon_image"].shape == shown.shape
        np.testing.assert_array_equal(found["recon_image_norm"], shown)
        np.testing.assert_array_equal(gan_inversion.to_uint8(found["recon_image"][None],
                                                             loading.generator(CPU).levels)[0], shown)


def test_a_resumed_run_gives_the_same_bytes(inverted):
    folder, ws, where = inverted
    paths = [ws.gan_image(index, control="true_features") for index in range(TEST)]
    before = [path.read_bytes() for path in paths]
    paths[2].unlink()
    kept = paths[0].stat().st_mtime_ns
    recon.main([*where, *GPU, "--true_features", "--n_iter", "60", "--batch_size", "2"])
    # Batches of two round differently from one of four: what is finished must be left alone.
    assert paths[0].stat().st_mtime_ns == kept
    paths[2].unlink(), paths[3].unlink()
    recon.main([*where, *GPU, "--true_features", "--n_iter", "60"])
    assert [path.read_bytes() for path in paths] == before


def test_other_settings_do_not_mix_with_finished_pictures(inverted):
    with pytest.raises(Problem, match="n_iter"):
        recon.main([*inverted[2], *GPU, "--true_features", "--n_iter", "61"])
    with pytest.raises(Problem, match="learning_rate"):
        recon.main([*inverted[2], *GPU, "--true_features", "--n_iter", "60", "--learning_rate", "1"])
    with pytest.raises(SystemExit):
        recon.main([*inverted[2], *GPU, "--learning_rate", "0"])
    with pytest.raises(Problem, match="seed"):
        recon.main([*inverted[2], *GPU, "--true_features", "--n_iter", "60", "--seed", "1"])


@pytest.fixture
def copied(inverted, tmp_path):
    """(workspace, flags) of a copy of the finished pictures, to make them in other ways."""
    folder = shutil.copytree(inverted[0], tmp_path / "copy")
    return layout.Workspace(folder, "subj01"), ["--workdir", str(folder), *GPU, "--true_features"]


def arithmetic(ws):
    """What the record of the recovery check's pictures says of how they were computed."""
    options = text_files.read_json(layout.manifest(ws.gan_image(0, control="true_features").parent))["options"]
    return {name: options[name] for name in ("precision", "convolutions") if name in options}


@no_winograd
def test_winograd_is_taken_where_a_layer_is_large_enough_and_recorded(copied, monkeypatch):
    ws, where = copied
    again = [*where, "--n_iter", "5", "--overwrite"]
    with pytest.raises(Problem, match="--convolutions winograd: .* — pass --convolutions auto"):
        recon.main([*again, "--convolutions", "winograd"])
    assert arithmetic(ws) == {}  # of the finished pictures: the small networks' layers are too small
    recon.main([*again, "--convolutions", "direct"])
    direct = scipy.io.loadmat(ws.gan_pixels(1, control="true_features"))["recon_image"]
    monkeypatch.setattr(winograd, "CHANNELS", 8)
    recon.main(again)
    assert arithmetic(ws) == {"convolutions": "winograd"}
    ours = scipy.io.loadmat(ws.gan_pixels(1, control="true_features"))["recon_image"]
    assert 0 < np.abs(ours - direct).max() < 0.05 * direct.std()
    with pytest.raises(Problem, match="convolutions"):
        recon.main([*again[:-1], "--convolutions", "direct"])


def test_pictures_of_vgg19s_own_size_are_inverted_few_at_a_time(copied, monkeypatch):
    ws, where = copied
    sizes, invert = [], gan_inversion.invert
    monkeypatch.setattr(gan_inversion, "invert", lambda *given: (sizes.append(len(given[3])), invert(*given))[1])
    monkeypatch.setattr(gan_inversion, "LARGE_BATCH", {"cpu": 3})
    recon.main([*where, "--n_iter", "1", "--overwrite"])
    monkeypatch.setattr(caffe_nets, "IMAGENET_SIZE", 64)
    recon.main([*where, "--n_iter", "1", "--overwrite"])
    assert sizes == [TEST, 3, 1]


def test_bfloat16_is_recorded_and_gives_pictures_like_float32s(copied):
    ws, where = copied
    again = [*where, "--n_iter", "3", "--imgidx", "0"]  # it is emulated where the processor has none, and slow
    recon.main([*again, "--overwrite"])
    exact = scipy.io.loadmat(ws.gan_pixels(0, control="true_features"))["recon_image"]
    with pytest.raises(Problem, match="precision"):
        recon.main([*again, "--precision", "bfloat16"])
    recon.main([*again, "--precision", "bfloat16", "--overwrite"])
    assert arithmetic(ws) == {"precision": "bfloat16"}
    coarse = scipy.io.loadmat(ws.gan_pixels(0, control="true_features"))["recon_image"]
    assert 0 < np.abs(coarse - exact).mean() < 0.2 * exact.std()


def decode(ws, dataset=None, layers=gan_inversion.LAYERS):
    """Stands in for ridge.py: the true features, with too little spread as decoded ones have."""
    for layer in layers:
        with subject_matrices.SubjectFeatures(ws.subject_features("ave", layer), "") as matrix:
            true = matrix.features("te")[:].astype(np.float32)
        mean = true.mean(1, keepdims=True)
        arrays.write_npy(ws.scores(decoded_features.ROIS, layer, dataset), mean + 0.3 * (true - mean))


def test_decoded_features_get_the_spread_of_training_images_only(extracted, monkeypatch):
    folder, ws, where = extracted
    seen = []
    original = gan_inversion.extraction.open_stimuli

    def watched(args):
        stimuli, attributes = original(args)
        inner = stimuli.read
        stimuli.read = lambda ids: seen.extend(ids) or inner(ids)
        return stimuli, attributes

    monkeypatch.setattr(gan_inversion.extraction, "open_stimuli", watched)
    decode(ws)
    make_vgg19fromdecode.main([*where, *SUBJECT])
    recon.main([*where, *GPU, "--n_iter", "40"])
    assert sorted(map(int, seen)) == list(range(TEST, TEST + TRAIN))
    # Shrunk features invert to the same pictures as the true ones, once their spread is restored.
    made = [np.asarray(Image.open(ws.gan_image(index))).astype(float).ravel() for index in range(TEST)]
    order = arrays.read_npy(ws.stims_ave)[arrays.read_npy(ws.stims_ave_test)]
    true = [scene_rendering.render(scene_sampling.sample(11, RED[s]), 64).image.ravel().astype(float) for s in order]
    assert (np.corrcoef(true, made)[:TEST, TEST:].argmax(1) == np.arange(TEST)).all()


def test_occluded_features_go_to_folders_of_their_own(at):
    folder, ws, where = at
    make_vgg19bdpy.main([*where, *GPU, "--layers", "fc8", "fc6", "--precision", "float32"])
    make_vgg19bdpy_occlusion.main([*where, *GPU, "--start", "0", "--end", "73000", "--dataset", "occluded",
                                   "--layers", "fc8", "--precision", "float32"], dataset="occluded")
    whole, dark = (feature_shards.Shards(layout.features(folder, name)).read([3], "")
                   for name in ("fc8", "fc8_occluded"))
    assert whole.shape == dark.shape and np.abs(whole - dark).max() > 0.1
    make_subjstim_vgg19.main([*where, *SUBJECT, "--layer", "fc8", "--dataset", "occluded"])
    decode(ws, "occluded", ["fc8_occluded"])
    make_vgg19fromdecode.main([*where, *SUBJECT, "--dataset", "occluded", "--layers", "fc8"])
    path = ws.gan_features("fc8", 0, "occluded")
    assert path.exists() and path != ws.gan_features("fc8", 0)
    assert ws.gan_image(0, "occluded") != ws.gan_image(0)


def test_missing_inputs_name_the_command_that_makes_them(at, tmp_path):
    where = ["--workdir", str(tmp_path)]
    with pytest.raises(Problem, match=r"no decoded conv1_2 .*fc8 — run ridge.py --target conv1_2 .* --roi early"):
        make_vgg19fromdecode.main([*where, *SUBJECT])
    with pytest.raises(Problem, match="conv1_2 .* run make_vgg19fromdecode.py --subject subj01 --dataset occluded"):
        recon.main([*where, *GPU, "--dataset", "occluded"])
    with pytest.raises(Problem, match="no layer conv9_9"):
        make_vgg19bdpy.main([*where, *GPU, "--layers", "conv9_9"])


def test_a_damaged_mat_file_is_named(tmp_path):
    path = tmp_path / "a.mat"
    gan_inversion.write_mat(path, {"feat": np.zeros((1, 4, 2, 2), np.float32)})
    with pytest.raises(Problem, match=r"holds feat \(1, 4, 2, 2\) where VGG19 has \(1, 5, 2, 2\)"):
        gan_inversion.read_mat(path, (5, 2, 2), "X")
    path.write_bytes(path.read_bytes()[:150])
    with pytest.raises(Problem, match="not a whole .mat file"):
        gan_inversion.read_mat(path, (4, 2, 2), "X")
    with pytest.raises(Problem, match="is missing — run X"):
        gan_inversion.read_mat(tmp_path / "b.mat", (4, 2, 2), "X")


# Streaming


def voxels_for(ws, voxels=9):
    """Random betas of one ROI for the world's trials, as make_subjmri.py writes them."""
    rng = np.random.default_rng(5)
    stims, ave, test = (arrays.read_npy(path) for path in (ws.stims, ws.stims_ave, ws.stims_ave_test))
    origin = {"options": {"sessions": 1}, "sources": {"nsd": "a"}}
    text_files.write_json(layout.sidecar(ws.stims), origin)
    for split, chosen in (("tr", ~test), ("te", test)):
        rows = np.isin(stims, ave[chosen])
        betas = rng.integers(-900, 900, (rows.sum(), voxels)).astype(np.int16)
        arrays.write_npy(ws.betas("early", split), betas)
        text_files.write_json(layout.sidecar(ws.betas("early", split)), origin)
        arrays.write_npy(ws.betas("early", split, average=True), np.stack(
            [betas[stims[rows] == stimulus].mean(0) for stimulus in ave[chosen]]).astype(np.float32))


@pytest.mark.parametrize("options", [["--stream_memory", "0.01"], ["--shared_alpha"]])
def test_a_streamed_layer_of_a_million_dims_is_decoded_as_a_stored_one(at, tmp_path, monkeypatch, options):
    folder, ws, where = at
    config = {"channels": (64, 2, 2, 2, 2), "image_size": 128, "hidden": 4, "outputs": 4}
    caffe_nets.save(caffe_nets.NarrowVGG19(**config), config, tmp_path / "vgg19")
    monkeypatch.setenv("NSD_MODELS", str(tmp_path))
    loading.forget(), checkpoints.identity.cache_clear()
    voxels_for(ws)
    passes = []
    replay = gan_inversion.Streamed.replay
    monkeypatch.setattr(gan_inversion.Streamed, "replay",
                        lambda self, ids: passes.append(len(ids)) or replay(self, ids))
    target = ["--target", "conv1_1", "--roi", "early", "--mode", "fixed", "--overwrite"]
    alphas = ["--alphas", "10", "1000"] if "--shared_alpha" not in options else ["--alphas", "100"]
    ridge.main([*where, *SUBJECT, *GPU, *target, *alphas, "--stream", *options])
    path = ws.scores(["early"], "conv1_1")
    streamed, record = arrays.read_npy(path), text_files.read_json(layout.sidecar(path))
    assert streamed.shape == (TEST, 64 * 128 * 128) and record["dims"] > 1_000_000
    assert passes == [TRAIN] * 3 + [TEST] if "--shared_alpha" not in options else passes == [TRAIN] * 2 + [TEST]
    assert not layout.features(folder, "conv1_1").exists()

    make_vgg19bdpy.main([*where, *GPU, "--layers", "conv1_1", "--store", "float32"])
    make_subjstim_vgg19.main([*where, *SUBJECT, "--layer", "conv1_1", "--overwrite"])
    ridge.main([*where, *SUBJECT, *GPU, *target, *alphas])
    stored, theirs = arrays.read_npy(path), text_files.read_json(layout.sidecar(path))
    spread = stored.std(0).mean()
    assert np.abs(streamed - stored).max() < 1e-3 * spread
    assert record["alphas"] == theirs["alphas"]
    for name in ("test_correlation", "test_pattern_correlation"):
        assert record[name] == pytest.approx(theirs[name], abs=1e-4)
    shutil.rmtree(layout.features(folder, "conv1_1"))
    loading.forget(), checkpoints.identity.cache_clear()


def test_only_vgg19s_layers_are_streamed(at):
    voxels_for(at[1])
    with pytest.raises(Problem, match="--stream with --target c"):
        ridge.main([*at[2], *SUBJECT, *GPU, "--target", "c", "--roi", "early", "--stream"])
