"""The small Stable Diffusion's VAE: 8×8 pixels become one place of four numbers, and back."""
import numpy as np
import torch
from diffusers import AutoencoderKL
from torch.nn import functional as F

from mini_nsd.training import data, loop
from mini_nsd.training.export import MODELS, save_half, write_card

STEPS = 3800
CROP_SHARE = 0.4        # of the steps train on 64 px crops, at a quarter of the price; the rest on whole pictures
KL_WEIGHT = 1e-4        # per latent number: keeps the latents compact and the decoder tolerant of decoded ones
SMALL = 80              # px: 5/8 of the native size, at which decoded latents are first turned into a picture


def build() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(24, 48, 96, 128), down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=1, latent_channels=4, norm_num_groups=8,
        sample_size=data.SIZE)


def train(cache) -> None:
    """Train on `cache`'s scenes and write mini_nsd/models/sd/vae."""
    torch.manual_seed(0)
    series = data.training_scenes(cache)
    loop.fit("vae", build(), lambda model, step, rng: _loss(model, _batch(series, step, rng)), steps=STEPS, rate=1e-3,
             muon_rate=3e-3, decay=0.995, cache=cache,
             export=lambda model, step, seconds: _export(model, step, seconds, series),
             export_steps=(STEPS * 2 // 5, STEPS * 3 // 5, STEPS * 4 // 5))


def _batch(series, step: int, rng) -> torch.Tensor:
    """Pictures in [-1, 1]: (16, 3, 64, 64) crops first, then (8, 3, 128, 128) and (16, 3, 80, 80) in turn."""
    small = step % 2 == 1
    cropped = step < CROP_SHARE * STEPS
    rows = np.sort(rng.choice(len(series), 16 if cropped or small else 8, replace=False))
    pictures = data.to_tensor(series.images[rows])
    if rng.random() < 0.5:
        pictures = pictures.flip(-1)
    if small:
        pictures = resize(pictures, SMALL)
    if cropped:
        top, left = rng.integers(0, pictures.shape[-1] - 64 + 1, 2)
        pictures = pictures[..., top:top + 64, left:left + 64]
    return pictures.contiguous()


def resize(pictures: torch.Tensor, size: int) -> torch.Tensor:
    return F.interpolate(pictures, size=(size, size), mode="bicubic", antialias=True).clamp(-1, 1)


def _loss(model, pictures) -> torch.Tensor:
    """Absolute error of pixels, of their differences, and of 2× and 4× smaller pictures; plus a trace of KL."""
    with loop.half():
        posterior = model.encode(pictures).latent_dist
        output = model.decode(posterior.sample()).sample
    error = output.float() - pictures
    edges = (error[..., 1:] - error[..., :-1]).abs().mean() + (error[..., 1:, :] - error[..., :-1, :]).abs().mean()
    coarse = sum(F.avg_pool2d(error, k).abs().mean() for k in (2, 4))
    mean, variance = posterior.mean.float(), posterior.var.float()
    kl = 0.5 * (mean ** 2 + variance - 1 - variance.log()).mean()
    return error.abs().mean() + 0.5 * edges + 0.5 * coarse + KL_WEIGHT * kl


@torch.no_grad()
def encode(vae, images: np.ndarray, batch: int = 32):
    """Posterior mean and standard deviation of (n, 128, 128, 3) uint8 pictures, each (n, 4, 16, 16) float32."""
    means, deviations = [], []
    for start in range(0, len(images), batch):
        with loop.half():
            posterior = vae.encode(data.to_tensor(images[start:start + batch])).latent_dist
        means.append(posterior.mean.float())
        deviations.append(posterior.std.float())
    return torch.cat(means), torch.cat(deviations)


@torch.no_grad()
def psnr(vae, size: int, count: int = 64) -> float:
    """Mean PSNR (dB) over held-out scenes, reconstructed from their posterior means at `size` px in float32."""
    pictures = data.to_tensor(data.rendered(data.HELD_OUT_SEED, 0, count).images)
    if size != data.SIZE:
        pictures = resize(pictures, size)
    output = torch.cat([vae.decode(vae.encode(part).latent_dist.mean).sample.clamp(-1, 1)
                        for part in pictures.split(16)])
    return float((10 * torch.log10(4 / ((output - pictures) ** 2).mean((1, 2, 3)))).mean())


def evaluate() -> dict:
    """What the VAE in mini_nsd/models/sd reaches on held-out scenes, by name."""
    return results(AutoencoderKL.from_pretrained(MODELS / "sd" / "vae", torch_dtype=torch.float32).eval())


def results(vae) -> dict:
    """As `evaluate`, for `vae`."""
    return {f"PSNR at {size} px, 64 held-out scenes": f"{psnr(vae, size):.2f} dB" for size in (data.SIZE, SMALL)}


def _export(model, step: int, seconds: float, series) -> None:
    means, _ = encode(model, series.images[:512])
    model.register_to_config(scaling_factor=round(float(1 / means.std()), 5))
    save_half(model, MODELS / "sd" / "vae")
    write_card(MODELS / "sd" / "vae", "AutoencoderKL", step, STEPS, seconds, results(model),
        "Compresses 128 px pictures to 4×16×16 (and 80 px ones to 4×10×10). Trained with absolute error only, no "
        "adversary: textures finer than about two pixels are smoothed away.")
