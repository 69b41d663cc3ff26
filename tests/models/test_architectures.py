"""The sizes of the networks, counted again: published architectures without weights, the small ones as they are."""
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from utils.generate import captioning, depth_maps, diffusion, gan_inversion
from utils.models import architectures, loading

CPU = torch.device("cpu")
NEAR = pytest.approx


def operations(function):
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


def numbers(network):
    return sum(parameter.numel() for parameter in network.parameters())


def compare(column, counted, weights=None):
    for table, found in ((architectures.OPERATIONS, counted), (architectures.WEIGHTS, weights or {})):
        assert found == {name: NEAR(table[name][column], rel=0.01) for name in found}


def test_stable_diffusion_1_4_without_weights():
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):
        unet, vae = UNet2DConditionModel(**architectures.UNET), AutoencoderKL(**architectures.VAE)
        text = CLIPTextModel(CLIPTextConfig(**architectures.TEXT))
        told, step = torch.zeros(1, 77, 768), torch.tensor(5)
        compare(architectures.PUBLISHED, {
            "unet": operations(lambda: unet(torch.zeros(1, 4, 64, 64), step, told)),
            "unet at feature size": operations(lambda: unet(torch.zeros(1, 4, 40, 40), step, told)),
            "encode": operations(lambda: vae.encode(torch.zeros(1, 3, 512, 512))),
            "encode at feature size": operations(lambda: vae.encode(torch.zeros(1, 3, 320, 320))),
            "decode": operations(lambda: vae.decode(torch.zeros(1, 4, 64, 64))),
            "decode at feature size": operations(lambda: vae.decode(torch.zeros(1, 4, 40, 40))),
            "text": operations(lambda: text(torch.zeros(1, 77, dtype=torch.long))),
        }, {"unet": numbers(unet), "vae": numbers(vae), "text": numbers(text)})


def test_the_networks_that_judge_without_weights():
    import torchvision
    from transformers import CLIPVisionConfig, CLIPVisionModel

    with torch.device("meta"):
        tower = CLIPVisionModel(CLIPVisionConfig(hidden_size=1024, intermediate_size=4096, num_hidden_layers=24,
                                                 num_attention_heads=16, patch_size=14, image_size=224))
        nets = {role: torchvision.models.get_model(name, **options).eval() for role, name, options in (
            ("inception", "inception_v3", {"init_weights": False}), ("alexnet", "alexnet", {}),
            ("efficientnet", "efficientnet_b1", {}), ("swav", "resnet50", {}))}
        sides = {"inception": 299, "alexnet": 299, "efficientnet": 255, "swav": 224}
        counted = {role: operations(lambda net=net, role=role: net(torch.zeros(1, 3, sides[role], sides[role])))
                   for role, net in nets.items()}
        counted["clip"] = operations(lambda: tower(torch.zeros(1, 3, 224, 224)))
    compare(architectures.PUBLISHED, counted, {role: numbers(net) for role, net in nets.items()})


def test_the_small_networks(monkeypatch):
    monkeypatch.setenv("NSD_MODELS", "tiny")
    loading.forget()
    parts = loading.stable_diffusion(CPU, torch.float32)
    model = diffusion.LatentDiffusion(parts)
    captioner = captioning.Captioner(*loading.blip(CPU, torch.float32))
    estimator = depth_maps.DepthEstimator(*loading.dpt(CPU, torch.float32))
    encoder, generator = loading.vgg19(CPU), loading.generator(CPU)
    picture = torch.zeros(1, 3, encoder.image_size, encoder.image_size)
    told = torch.zeros(1, *model.text_shape)

    def unet(side):
        return operations(lambda: parts.unet(torch.zeros(1, 4, side, side), 5, encoder_hidden_states=told))
    compare(architectures.SMALL, {
        "unet": unet(model.latent_side), "unet at feature size": unet(model.latent_shape[1]),
        "encode": operations(lambda: parts.vae.encode(torch.zeros(1, 3, model.size, model.size))),
        "decode": operations(lambda: parts.vae.decode(torch.zeros(1, 4, model.latent_side, model.latent_side))),
        "text": operations(lambda: model.embed(["a"])),
        "blip": operations(lambda: captioner.embed(captioner.blank())),
        "dpt": operations(lambda: estimator.hidden_states(estimator.blank())),
        "vgg19": operations(lambda: encoder.activations(picture, gan_inversion.LAYERS)),
        "generator": operations(lambda: generator.network(torch.zeros(1, 384))),
    }, {"unet": numbers(parts.unet), "vae": numbers(parts.vae), "blip": numbers(captioner.network)})
    shapes = encoder.shapes(gan_inversion.LAYERS)
    sizes = {"init_latent": model.latent_shape, "c": model.text_shape, "blip": captioner.shape,
             "dpt": estimator.shape} | shapes
    for name, shape in sizes.items():
        assert architectures.of(architectures.DIMS, name) == torch.Size(shape).numel(), name
