"""The small Stable Diffusion's UNet: predicts the noise in a latent, given how noisy it is and what it should show."""
import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from transformers import CLIPTextModel, CLIPTokenizer

from mini_nsd.training import clip, data, loop, vae, words
from mini_nsd.training.export import MODELS, save_half, write_card

STEPS = 3600
BATCH = 64
EMPTY_SHARE, MEAN_SHARE = 0.10, 0.45    # conditioned on ""; on the mean of five captions; the rest on one caption
MIN_SNR = 5.0                           # Hang et al. 2023, eq. 4
GUIDANCE = 5.0
NOTE = (
    "Conditioned on the text encoder's last hidden state: in 45 % of the training steps on that of one caption, in "
    "45 % on the mean over a picture's five captions (which is what the pipeline decodes from brain activity), in "
    "10 % on that of \"\". Predicts noise (epsilon), min-SNR weighted. Patterns and exact positions follow the "
    "caption less faithfully than colours, shapes and places do.")


@dataclass(frozen=True)
class Encoded:
    """The training scenes as the UNet sees them, memory-mapped.

    means, deviations  (n, 4, 16, 16) float16, the VAE's posterior times its scaling factor
    text               (n, 5, tokens, width) float16, an embedding per caption
    empty              (tokens, width) float32, the embedding of ""
    """

    means: np.ndarray
    deviations: np.ndarray
    text: np.ndarray
    empty: torch.Tensor


def build(in_channels: int = 4) -> UNet2DConditionModel:
    unet = UNet2DConditionModel(
        sample_size=data.SIZE // 8, in_channels=in_channels, block_out_channels=(64, 96, 96), layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=128, attention_head_dim=4, norm_num_groups=16)
    unet.set_attn_processor(AttnProcessor())        # faster than fused attention on a CPU at this size
    return unet


def scheduler() -> DDIMScheduler:
    """Stable Diffusion 1.4's noise schedule."""
    return DDIMScheduler(num_train_timesteps=1000, beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012,
                         clip_sample=False, set_alpha_to_one=False, steps_offset=1, prediction_type="epsilon")


def train(cache) -> None:
    """Train on `cache`'s scenes, with the VAE and text encoder in mini_nsd/models/sd; write the rest of that folder."""
    torch.manual_seed(0)
    encoded = encode(cache, data.training_scenes(cache))
    noise = scheduler()
    loop.fit("unet", build(), lambda model, step, rng: loss(model, noise, encoded, rng), steps=STEPS, rate=1e-3,
             muon_rate=2e-3, decay=0.998, cache=cache, export=_export,
             export_steps=(STEPS // 6, STEPS // 3, STEPS * 2 // 3))


def loss(model, noise, encoded: Encoded, rng, depth=None) -> torch.Tensor:
    """Min-SNR weighted squared error of the predicted noise over a batch.

    depth, (n, 1, 16, 16) in [-1, 1] for all scenes, is given to a model that takes it as a fifth channel.
    """
    rows = np.sort(rng.choice(len(encoded.means), BATCH, replace=False))
    means, deviations = (torch.from_numpy(part[rows]).float() for part in (encoded.means, encoded.deviations))
    latents = means + deviations * torch.randn_like(means)
    target = torch.randn_like(latents)
    steps = torch.randint(0, noise.config.num_train_timesteps, (BATCH,))
    inputs = noise.add_noise(latents, target, steps)
    if depth is not None:
        inputs = torch.cat([inputs, depth[rows]], 1)
    with loop.half():
        predicted = model(inputs, steps, _conditioning(encoded, rows, rng)).sample
    signal = noise.alphas_cumprod[steps]
    ratio = signal / (1 - signal)
    weight = ratio.clamp(max=MIN_SNR) / ratio
    return (weight * ((predicted.float() - target) ** 2).mean((1, 2, 3))).mean()


def _conditioning(encoded: Encoded, rows, rng) -> torch.Tensor:
    """(BATCH, tokens, width): one caption's embedding, the mean of all, or that of "", drawn for each row."""
    text = torch.from_numpy(encoded.text[rows]).float()
    draw = torch.from_numpy(rng.random(BATCH))[:, None, None]
    one = text[torch.arange(BATCH), torch.from_numpy(rng.integers(0, text.shape[1], BATCH))]
    chosen = torch.where(draw < EMPTY_SHARE + MEAN_SHARE, text.mean(1), one)
    return torch.where(draw < EMPTY_SHARE, encoded.empty, chosen)


@torch.no_grad()
def encode(cache: Path, series) -> Encoded:
    """Latents and caption embeddings of the training scenes; kept in `cache` for these weights."""
    folder = MODELS / "sd"
    weights = [(folder / path).read_bytes() for path in
               ("vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors")]
    store = cache / f"encoded-{hashlib.sha256(b''.join(weights)).hexdigest()[:12]}"
    encoder = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32).eval()
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    if not store.exists():
        autoencoder = AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=torch.float32).eval()
        scale = autoencoder.config.scaling_factor
        partial = store.with_suffix(".partial")
        partial.mkdir(exist_ok=True)
        for name, part in zip(("means", "deviations"), vae.encode(autoencoder, series.images)):
            np.save(partial / f"{name}.npy", (part * scale).half().numpy())
        hundreds = [series.captions[start:start + 100] for start in range(0, len(series), 100)]
        text = [_embed(encoder, tokenizer, [sentence for five in part for sentence in five]) for part in hundreds]
        np.save(partial / "text.npy", np.concatenate(text).reshape(len(series), -1, *text[0].shape[1:]))
        partial.rename(store)
    empty = torch.from_numpy(_embed(encoder, tokenizer, [""])[0]).float()
    return Encoded(*(np.load(store / f"{name}.npy", mmap_mode="r") for name in ("means", "deviations", "text")), empty)


def _embed(encoder, tokenizer, sentences) -> np.ndarray:
    with loop.half():
        states = encoder(input_ids=words.tokenize(tokenizer, sentences)).last_hidden_state
    return states.half().numpy()


def load_pipeline() -> StableDiffusionPipeline:
    """mini_nsd/models/sd in float32."""
    pipeline = StableDiffusionPipeline.from_pretrained(
        MODELS / "sd", safety_checker=None, torch_dtype=torch.float32, use_safetensors=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def generate(pipeline, sentences, steps: int = 50, seed: int = 0) -> torch.Tensor:
    """A picture per sentence from pure noise, with guidance: (n, 3, 128, 128) in [-1, 1]."""
    generators = [torch.Generator().manual_seed(seed + number) for number in range(len(sentences))]
    with loop.half():
        images = pipeline(list(sentences), num_inference_steps=steps, guidance_scale=GUIDANCE, generator=generators,
                          output_type="pt").images
    return images.float() * 2 - 1


def evaluate(count: int = 100, steps: int = 50) -> dict:
    """What the model in mini_nsd/models/sd reaches on held-out captions, by name."""
    judge, tokenizer, _ = clip.load()
    sentences = [five[0] for five in data.rendered(data.HELD_OUT_SEED, 0, count).captions]
    seen = clip.embed_images(judge, generate(load_pipeline(), sentences, steps))
    share = clip.match_among(seen @ clip.embed_sentences(judge, tokenizer, sentences).T)
    return {f"generated picture finds its caption among 10, {count} held-out captions, {steps} steps, "
            f"guidance {GUIDANCE:g}": f"{share:.1%}"}


def _export(model, step: int, seconds: float) -> None:
    folder = MODELS / "sd"
    save_half(model, folder / "unet")
    scheduler().save_pretrained(folder / "scheduler")
    StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(folder / "vae"), unet=model,
        text_encoder=CLIPTextModel.from_pretrained(folder / "text_encoder"),
        tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer"), scheduler=scheduler(),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False).save_config(folder)
    write_card(folder / "unet", "UNet2DConditionModel", step, STEPS, seconds, evaluate(), NOTE)
