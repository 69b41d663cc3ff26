"""The small depth-conditioned diffusion model: sd's UNet with a map of what is near as its fifth input channel."""
import json

import numpy as np
import torch
from diffusers import UNet2DConditionModel

from mini_nsd.training import data, dpt, loop, unet, words
from mini_nsd.training.export import MODELS, copy_parts, save_half, write_card
from utils.generate import depth_maps, diffusion
from utils.storage import text_files

STEPS = 600
INDEX = {
    "_class_name": "StableDiffusionDepth2ImgPipeline",
    "vae": ["diffusers", "AutoencoderKL"], "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"], "unet": ["diffusers", "UNet2DConditionModel"],
    "scheduler": ["diffusers", "DDIMScheduler"], "depth_estimator": ["transformers", "DPTForDepthEstimation"],
    "feature_extractor": ["transformers", "DPTImageProcessor"],
}


def build() -> UNet2DConditionModel:
    """mini_nsd/models/sd's UNet with a fifth input channel that it ignores at first, as SD2-depth was begun."""
    plain = UNet2DConditionModel.from_pretrained(MODELS / "sd" / "unet", torch_dtype=torch.float32)
    model = unet.build(in_channels=5)
    weights = plain.state_dict()
    weights["conv_in.weight"] = torch.nn.functional.pad(weights["conv_in.weight"], (0, 0, 0, 0, 0, 1))
    model.load_state_dict(weights)
    return model


def train(cache) -> None:
    """Train on `cache`'s scenes with their true depth and write mini_nsd/models/sd_depth."""
    torch.manual_seed(0)
    series = data.training_scenes(cache)
    encoded, noise = unet.encode(cache, series), unet.scheduler()
    maps = channel(series.depth)
    loop.fit("sd_depth", build(), lambda model, step, rng: unet.loss(model, noise, encoded, rng, maps), steps=STEPS,
             rate=5e-4, muon_rate=1e-3, decay=0.995, cache=cache, export=_export, export_steps=(STEPS // 2,))


def channel(metres: np.ndarray) -> torch.Tensor:
    """(n, 64, 64) true depth → (n, 1, 16, 16) nearness in [-1, 1], made as the pipeline makes it from DPT's."""
    parts = [diffusion.depth_channel(depth_maps.normalise(dpt.UNIT / torch.from_numpy(part.astype(np.float32))),
                                     data.SIZE // 8)
             for part in np.array_split(metres, -(-len(metres) // 1000))]
    return torch.cat(parts)


def evaluate(count: int = 48) -> dict:
    """How well the generated things lie where the given depth says: r of that map with what the small DPT then sees.

    Pictures start from noise, under held-out captions and the scenes' true depth. The plain model, which is told the
    captions only, is measured beside it. The mean map, of ground and sky that all scenes share, is taken away first.
    """
    series = data.rendered(data.HELD_OUT_SEED, 0, count)
    given = depth_maps.normalise(dpt.UNIT / torch.from_numpy(series.depth.astype(np.float32)))
    sentences = [five[0] for five in series.captions]
    found = {}
    for role, extra in (("sd_depth", channel(series.depth)), ("sd", None)):
        seen = _nearness(_generate(role, sentences, extra))
        found[role] = depth_maps.correlation(given - given.mean(0), seen - given.mean(0)).mean()
    return {f"depth of the generated picture against the given one, r over {count} held-out scenes":
            f"{found['sd_depth']:.3f}",
            "the same without being given the depth (mini_nsd/models/sd)": f"{found['sd']:.3f}"}


@torch.no_grad()
def _generate(role: str, sentences, maps, steps: int = 25) -> torch.Tensor:
    """A picture per sentence from noise, with guidance, (n, 3, 128, 128) in [-1, 1]; `maps` go to the fifth channel."""
    parts = unet.load_pipeline()
    model = UNet2DConditionModel.from_pretrained(MODELS / role / "unet", torch_dtype=torch.float32).eval()
    text = torch.cat([parts.text_encoder(input_ids=words.tokenize(parts.tokenizer, these)).last_hidden_state
                      for these in ([""] * len(sentences), sentences)])
    latents = torch.randn((len(sentences), 4, data.SIZE // 8, data.SIZE // 8),
                          generator=torch.Generator().manual_seed(0))
    parts.scheduler.set_timesteps(steps)
    for timestep in parts.scheduler.timesteps:
        inputs = latents if maps is None else torch.cat([latents, maps], 1)
        with loop.half():
            predicted = model(torch.cat([inputs, inputs]), timestep, text).sample
        without, given = predicted.float().chunk(2)
        latents = parts.scheduler.step(without + unet.GUIDANCE * (given - without), timestep, latents).prev_sample
    return parts.vae.decode(latents / parts.vae.config.scaling_factor).sample.clamp(-1, 1)


def _nearness(pictures: torch.Tensor) -> torch.Tensor:
    """(n, 3, 128, 128) in [-1, 1] → (n, 1, 64, 64): what the small DPT sees, in [-1, 1]."""
    estimator = dpt.load()
    pixels = ((pictures + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return depth_maps.normalise(estimator.depth(estimator.hidden_states(estimator.prepare(pixels))))


def _export(model, step: int, seconds: float) -> None:
    folder = MODELS / "sd_depth"
    save_half(model, folder / "unet")
    text_files.write_text(folder / "model_index.json", json.dumps(INDEX, indent=2) + "\n")
    copy_parts()
    write_card(folder, "StableDiffusionDepth2ImgPipeline", step, STEPS, seconds, evaluate(),
               "mini_nsd/models/sd's UNet, trained on with the true nearness of a scene (the inverse of its depth, "
               "scaled to [-1, 1]) as a fifth channel of 16×16. The other parts are copies of those of sd and dpt.")
