"""The committed small models: their formats, their size, and the bars that they were trained to."""
import filecmp

import pytest
import torch
from diffusers import AutoencoderKL

from mini_nsd.training import clip, data, unet, vae
from mini_nsd.training.export import COPIES, MODELS
from mini_nsd.training.muon import Muon, suits
from utils.models import narrow_nets


@pytest.fixture(scope="module")
def autoencoder():
    return AutoencoderKL.from_pretrained(MODELS / "sd" / "vae", torch_dtype=torch.float32).eval()


def test_all_models_together_stay_under_40_mb():
    weights = [path for path in MODELS.rglob("*.safetensors") if path.relative_to(MODELS).as_posix() not in COPIES]
    assert sum(path.stat().st_size for path in weights) < 40e6


def test_parts_that_models_share_are_copies_and_not_links():
    assert not [path for path in MODELS.rglob("*") if path.is_symlink()]
    for name, source in COPIES.items():
        assert filecmp.cmp(MODELS / name, MODELS / source, shallow=False), name


def test_every_model_has_a_card_that_says_its_data_are_simulated():
    for path in MODELS.rglob("*.safetensors"):
        cards = [folder / "README.md" for folder in (path.parent, path.parent.parent)]
        card = next(card for card in cards if card.exists())
        assert "simulated scenes" in card.read_text(encoding="utf-8"), path


def test_vae_reconstructs_held_out_scenes_at_28_db(autoencoder):
    assert vae.psnr(autoencoder, data.SIZE, count=24) >= 28


def test_latents_have_unit_spread_after_scaling(autoencoder):
    means, _ = vae.encode(autoencoder, data.rendered(data.HELD_OUT_SEED, 0, 32).images)
    assert float(means.std()) * autoencoder.config.scaling_factor == pytest.approx(1, abs=0.1)


def test_clip_matches_picture_and_caption_among_ten():
    model, tokenizer, _ = clip.load()
    assert clip.match_held_out(model, tokenizer, count=60) >= 0.9


def test_clip_pools_the_text_at_its_end_whatever_the_padding():
    model, tokenizer, _ = clip.load()
    short = tokenizer(["a red ball"], return_tensors="pt").input_ids
    padded = tokenizer(["a red ball"], return_tensors="pt", padding="max_length", max_length=32).input_ids
    with torch.no_grad():
        one, other = (model.text_model(input_ids=ids).pooler_output for ids in (short, padded))
    assert torch.allclose(one, other, atol=1e-4)


def test_generated_pictures_find_their_captions_among_ten():
    share = next(iter(unet.evaluate(count=24, steps=20).values()))
    assert float(share.rstrip("%")) >= 80


@pytest.mark.parametrize("role, least", [("alexnet", 0.9), ("inception", 0.9)])
def test_classifiers_name_colours_and_have_torchvisions_nodes(role, least):
    from mini_nsd.training.classifiers import results

    network, config = narrow_nets.load(MODELS / role)
    assert len(config["labels"]) == config["arguments"]["n_labels"]
    assert float(next(iter(results(network, count=60).values())).rstrip("%")) >= 100 * least
    nodes = dict(network.named_modules())
    assert set({"alexnet": ["features.5", "features.12", "classifier.5"],
                "inception": ["avgpool", "Mixed_7c"]}[role]) <= set(nodes)


def test_a_muon_update_is_close_to_orthogonal():
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.zeros(32, 16, 3, 3))
    assert suits(weight) and not suits(torch.zeros(3, 16, 3, 3)) and not suits(torch.zeros(64))
    weight.grad = torch.randn_like(weight)
    Muon([weight], lr=1.0).step()
    values = torch.linalg.svdvals(weight.detach().flatten(1)) / (0.2 * 144 ** 0.5)
    assert values.min() > 0.5 and values.max() < 1.3
