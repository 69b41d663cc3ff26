"""The small DPT: how near each place of a picture is."""
import numpy as np
import torch
from torch.nn import functional as F
from transformers import DPTConfig, DPTForDepthEstimation, DPTImageProcessor

from mini_nsd import scene_rendering, scene_sampling
from mini_nsd.training import data, loop
from mini_nsd.training.export import MODELS, save_half, write_card
from utils.generate import depth_maps

STEPS = 2500
BATCH = 16
PATCH = 16              # px: 8×8 patches of a 128 px picture
UNIT = 10.0             # the model's nearness: UNIT / metres, larger = nearer, the direction that Intel/dpt-large has


def build() -> DPTForDepthEstimation:
    model = DPTForDepthEstimation(DPTConfig(
        hidden_size=96, num_hidden_layers=8, num_attention_heads=4, intermediate_size=192, image_size=data.SIZE,
        patch_size=PATCH, backbone_out_indices=[1, 3, 5, 7], neck_hidden_sizes=[24, 48, 64, 64], fusion_hidden_size=24))
    # The head ends in a ReLU: started at zero it could die.
    torch.nn.init.constant_(model.head.head[4].bias, 2.0)
    torch.nn.init.trunc_normal_(model.dpt.embeddings.position_embeddings, std=0.02)
    return model


def train(cache) -> None:
    """Train on `cache`'s scenes and write mini_nsd/models/dpt."""
    torch.manual_seed(0)
    series = data.training_scenes(cache)
    loop.fit("dpt", build(), lambda model, step, rng: _loss(model, series, rng), steps=STEPS, rate=1e-3, cache=cache,
             decay=0.995, export_steps=(STEPS // 2,), export=_export)


def _loss(model, series, rng) -> torch.Tensor:
    """Absolute error of the nearness at 64 px, and of its differences: edges of things, and slopes of the ground."""
    rows = np.sort(rng.choice(len(series), BATCH, replace=False))
    pixels = data.to_tensor(series.images[rows])
    target = UNIT / torch.from_numpy(series.depth[rows]).float()
    if rng.random() < 0.5:
        pixels, target = pixels.flip(-1), target.flip(-1)
    with loop.half():
        predicted = model(pixel_values=pixels).predicted_depth
    error = F.avg_pool2d(predicted.float()[:, None], data.SIZE // data.DEPTH_SIZE)[:, 0] - target
    slopes = (error[..., 1:] - error[..., :-1]).abs().mean() + (error[..., 1:, :] - error[..., :-1, :]).abs().mean()
    return error.abs().mean() + slopes


def load() -> depth_maps.DepthEstimator:
    """The trained model in float32, as the pipeline uses it."""
    folder = MODELS / "dpt"
    return depth_maps.DepthEstimator(DPTForDepthEstimation.from_pretrained(folder, dtype=torch.float32).eval(),
                                     DPTImageProcessor.from_pretrained(folder))


def true_nearness(pictures) -> np.ndarray:
    """(n, 1, 64, 64) true nearness of scenes.Rendering's, scaled as `depth_maps.normalise` scales DPT's."""
    return depth_maps.normalise(UNIT / torch.from_numpy(np.stack([each.depth for each in pictures]))).numpy()


def correlation(estimator, count: int = 200) -> np.ndarray:
    """(count,) Pearson r of the predicted with the true nearness of held-out pictures, each at 64 px."""
    found = []
    for start in range(0, count, 50):
        indices = range(start, min(start + 50, count))
        pictures = [scene_rendering.render(scene_sampling.sample(data.HELD_OUT_SEED, index), data.SIZE)
                    for index in indices]
        pixels = estimator.prepare(np.stack([each.image for each in pictures]))
        predicted = depth_maps.normalise(estimator.depth(estimator.hidden_states(pixels))).numpy()
        found.append(depth_maps.correlation(predicted, true_nearness(pictures)))
    return np.concatenate(found)


def evaluate() -> dict:
    """What the model in mini_nsd/models/dpt reaches on held-out scenes, by name."""
    estimator = load()
    found = correlation(estimator)
    return {"size": f"{sum(p.numel() for p in estimator.network.parameters()):,} parameters",
            "correlation with the true inverse depth, mean of 200 held-out scenes": f"{found.mean():.3f}",
            "the same, worst tenth of the scenes below": f"{np.quantile(found, 0.1):.3f}"}


def _export(model, step: int, seconds: float) -> None:
    folder = MODELS / "dpt"
    save_half(model, folder)
    DPTImageProcessor(size={"height": data.SIZE, "width": data.SIZE}, image_mean=[0.5] * 3, image_std=[0.5] * 3,
                      do_pad=False).save_pretrained(folder)
    write_card(folder, "DPTForDepthEstimation", step, STEPS, seconds, evaluate(),
               "Predicts relative inverse depth, larger = nearer, as Intel/dpt-large does; here it is 10 / metres. "
               "Hidden states 65×96 at four layers.")
