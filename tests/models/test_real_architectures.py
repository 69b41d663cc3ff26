"""The published architectures, built from their published configurations with random weights,
through the same functions.

No published weight is here, so nothing is learnt about pictures; shapes, sizes, folder layout and precision are.
"""
import json

import numpy as np
import pytest
import torch

from mini_nsd import scene_rendering, scene_sampling
from utils import images
from utils.evaluate import judging_networks
from utils.generate import diffusion
from utils.models import architectures, checkpoints, loading
from utils.nsd import object_keys

pytestmark = pytest.mark.slow
CPU = torch.device("cpu")


def write_stable_diffusion(folder):
    """Stable Diffusion 1.4 in the hub's layout, random bfloat16 weights; the small model's vocabulary, padded to 77."""
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    AutoencoderKL(**architectures.VAE).to(torch.bfloat16).save_pretrained(folder / "sd/vae")
    UNet2DConditionModel(**architectures.UNET).to(torch.bfloat16).save_pretrained(folder / "sd/unet")
    CLIPTextModel(CLIPTextConfig(**architectures.TEXT)).to(torch.bfloat16).save_pretrained(folder / "sd/text_encoder")
    DDIMScheduler(**architectures.SCHEDULE).save_pretrained(folder / "sd/scheduler")
    target = folder / "sd/tokenizer"
    target.mkdir(exist_ok=True)
    for path in (checkpoints.TINY / "sd/tokenizer").iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    config = json.loads((target / "tokenizer_config.json").read_text()) | {"model_max_length": 77}
    (target / "tokenizer_config.json").write_text(json.dumps(config))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A folder in the hub's layout, named by NSD_MODELS."""
    folder = tmp_path_factory.mktemp("models")
    write_stable_diffusion(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NSD_MODELS", str(folder))
        loading.forget()
        yield loading.stable_diffusion(CPU, torch.bfloat16)
        loading.forget()


def test_stable_diffusion_1_4_has_the_sizes_of_the_contract(checkpoint):
    model = diffusion.LatentDiffusion(checkpoint)
    stimulus = scene_rendering.render(scene_sampling.sample(73, 0)).image[None]
    assert stimulus.shape == (1, 425, 425, 3)
    latents = model.encode(model.prepare(stimulus))
    assert model.prepare(stimulus).shape == (1, 3, 320, 320) and latents.shape == (1, 4, 40, 40)
    assert latents[0].numel() == 6_400 and checkpoint.vae.config.scaling_factor == 0.18215
    text = model.caption_features([["a red ball", "a ball"]])
    assert text.shape == (1, 77, 768) and text.numel() == 59_136
    noise = diffusion.sample_noise(42, 0, 0, (4, 64, 64))[None]
    pixels = model.img2img(model.start_latents(latents.flatten(1)), text, noise, strength=0.5, steps=2, progress=False)
    assert pixels.shape == (1, 3, 512, 512)
    assert images.to_pixels(pixels).shape == (1, 512, 512, 3)


@pytest.mark.parametrize("role, name, dims", [("inception", "inception", 2048), ("alexnet", "alexnet18", 4096)])
def test_torchvisions_classifiers_give_the_evaluation_features(monkeypatch, role, name, dims):
    import torchvision

    network = (torchvision.models.inception_v3(init_weights=False) if role == "inception"  # its own draw takes a minute
               else torchvision.models.alexnet())
    monkeypatch.setattr(loading, "classifier", lambda role, device: (network.eval(), loading.IMAGENET))
    found = judging_networks.Evaluators([name], CPU)(np.zeros((1, 512, 512, 3), np.uint8))
    assert found[name].shape == (1, dims)


def test_keys_are_those_of_the_public_bucket():
    assert object_keys.betas_key("subj01", 1) == ("nsddata_betas/ppdata/subj01/func1pt8mm/betas_fithrf_GLMdenoise_RR/"
                                                  "betas_session01.nii.gz")
    assert object_keys.responses_key("subj01") == "nsddata/ppdata/subj01/behav/responses.tsv"
    assert object_keys.atlas_key("subj01", "streams") == "nsddata/ppdata/subj01/func1pt8mm/roi/streams.nii.gz"
    assert object_keys.DESIGN_KEY == "nsddata/experiments/nsd/nsd_expdesign.mat"
    assert object_keys.STIMULI_KEY == "nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5"
