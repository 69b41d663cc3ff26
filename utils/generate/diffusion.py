"""Latent diffusion as Takagi & Nishimoto (CVPR 2023) use it: encode, embed, decode, image-to-image.

All sizes come from the checkpoint. Stable Diffusion v1.4 works at 512 px, so its features are taken at 320 px
(4×40×40 latents, 77×768 text embeddings); a smaller checkpoint's are taken at the same 5/8 of its size.
"""
import numpy as np
from tqdm import tqdm

from utils import images, lazy
from utils.errors import Problem

torch = lazy.module("torch")

STRENGTH, STEPS, GUIDANCE = 0.8, 50, 5.0  # docs/algorithms.md#sampling; the original's diffusion_decoding.py
FEATURE_SHARE = 320 / 512  # side of the image whose latent is decoded, as a share of the model's own size
STARTS = ("picture", "latent")  # how a decoded latent becomes that of the start image, see `start_latents`
SCHEDULERS = ("ddim", "dpm", "unipc")
# What the VAE takes at once: two pictures of 512 px, whatever the batch; memory stays the same.
VAE_PIXELS = 2 * 512 ** 2
DRAW_SAMPLE_NOISE = 1  # keeps the streams of random numbers of different draws of one item apart


def scheduler(name, config):
    """A diffusers scheduler on the checkpoint's own noise schedule: ddim (eta 0), dpm (DPM-Solver++ 2M), unipc."""
    from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler

    cls = {"ddim": DDIMScheduler, "dpm": DPMSolverMultistepScheduler, "unipc": UniPCMultistepScheduler}[name]
    return cls.from_config(config)


def sample_noise(seed, image, sample, shape):
    """Standard normal noise that depends on (seed, image, sample) alone, not on batch, order or device.

    shape: of one latent, (4, h, w). Returns a float32 tensor.
    """
    draw = np.random.default_rng((seed, image, sample, DRAW_SAMPLE_NOISE))
    return torch.from_numpy(draw.standard_normal(shape, dtype=np.float32))


class LatentDiffusion:
    """The numerics around one checkpoint (`loading.StableDiffusion`). Every method takes and gives a batch.

    share: side of the pictures that it makes, as a share of the size that the checkpoint was trained at. The published
    method has 1, 512 px for Stable Diffusion; 416 px, 0.8125, are 60% of the work.
    """

    def __init__(self, checkpoint, share=1.0):
        self.checkpoint = checkpoint
        self.device, self.dtype = checkpoint.device, checkpoint.dtype
        self.factor = 2 ** (len(checkpoint.vae.config.block_out_channels) - 1)
        self.latent_channels = checkpoint.vae.config.latent_channels
        self.feature_size = round(checkpoint.latent_side * self.factor * FEATURE_SHARE)
        self.latent_side = round(checkpoint.latent_side * share)
        self.size = self.latent_side * self.factor
        self.latent_shape = (self.latent_channels, self.feature_size // self.factor, self.feature_size // self.factor)
        self.text_shape = (checkpoint.tokenizer.model_max_length, checkpoint.text_encoder.config.hidden_size)

    def _to(self, tensor):
        return tensor.to(self.device, self.dtype)

    @lazy.inference_mode
    def encode(self, pixels):
        """(n, 3, s, s) in [-1, 1] → (n, 4, s/f, s/f) float32: the posterior's mean × the VAE's scaling factor.

        The mean, not a draw from the posterior: a feature has to be the same at every run.
        """
        vae = self.checkpoint.vae
        found = self._in_slices(lambda part: vae.encode(part).latent_dist.mean.float(), pixels, pixels.shape[-1])
        return found * vae.config.scaling_factor

    @lazy.inference_mode
    def decode(self, latents):
        """(n, 4, h, w) scaled latents → (n, 3, h·f, w·f) float32 in [-1, 1]."""
        vae = self.checkpoint.vae
        found = self._in_slices(lambda part: vae.decode(part).sample.float(), latents / vae.config.scaling_factor,
                                latents.shape[-1] * self.factor)
        return found.clamp(-1, 1)

    def decode_denoised(self, latents):
        """`decode` of what the UNet made. Raises Problem for NaN or infinity, which would become a black picture."""
        if not torch.isfinite(latents).all():
            raise Problem("the UNet returned NaN or infinite latents",
                          "check the checkpoint and the conditioning" if self.dtype == torch.float32 else
                          "half precision overflowed: run again with --precision float32 --overwrite")
        return self.decode(latents)

    def _in_slices(self, compute, inputs, side):
        """compute(inputs) of the VAE, a few items at a time, for pictures of `side` px;
        it is the same whatever the slice.

        An item whose result is NaN or infinite is computed again in float32, by itself, so that it does not depend on
        its neighbours either: Stable Diffusion's VAE can overflow float16. Raises Problem where that does not help.
        """
        found = []
        for part in inputs.to(self.device).split(slice_of(side)):
            made = compute(self._to(part))
            bad = ~torch.isfinite(made).flatten(1).all(1)
            if self.dtype != torch.float32 and bad.any():
                self.checkpoint.vae.float()
                for item in bad.nonzero()[:, 0].tolist():
                    made[item] = compute(part[item:item + 1].float())[0]
                self.checkpoint.vae.to(self.dtype)
                bad = ~torch.isfinite(made).flatten(1).all(1)
            if bad.any():
                raise Problem(f"the VAE returned NaN or infinite numbers for {int(bad.sum())} of {len(part)} pictures, "
                              "in float32 too", "check what it was given: decoded features, or the stimuli")
            found.append(made)
        return torch.cat(found)

    @lazy.inference_mode
    def predict(self, latents, timestep, empty, conditioning, guidance, extra=None):
        """The UNet's prediction (n, 4, h, w) float32 for scaled latents, guided unless `conditioning` is None.

        empty, conditioning: (n, tokens, width); extra: (n, k, h, w), concatenated to the latents.
        """
        inputs = latents if extra is None else torch.cat([latents, extra.to(latents)], 1)
        guided = conditioning is not None and guidance != 1
        text = empty if conditioning is None else conditioning.to(self.device)
        text = self._to(torch.cat([empty, text]) if guided else text)
        predicted = self.checkpoint.unet(self._to(torch.cat([inputs, inputs]) if guided else inputs), timestep,
                                         encoder_hidden_states=text).sample.float()
        if not guided:
            return predicted
        unconditional, conditional = predicted.chunk(2)
        return unconditional + guidance * (conditional - unconditional)

    def probe(self, extra_channels=0):
        """One guided step of one blank sample: what `memory.batch` tries."""
        latents = torch.zeros(1, self.latent_channels + extra_channels, self.latent_side, self.latent_side,
                              device=self.device)
        text = torch.zeros(1, *self.text_shape, device=self.device)
        self.predict(latents, torch.tensor(0, device=self.device), text, text, GUIDANCE)

    def sliced_decode(self):
        """(decode one blank picture, the most that the VAE takes at once), for `memory.batch`."""
        blank = torch.zeros(1, self.latent_channels, self.latent_side, self.latent_side)
        return lambda: self.decode(blank), slice_of(self.size)

    def sliced_encode(self):
        """As `sliced_decode`, for `encode` of a picture at the feature size."""
        blank = torch.zeros(1, 3, self.feature_size, self.feature_size)
        return lambda: self.encode(blank), slice_of(self.feature_size)

    @lazy.inference_mode
    def embed(self, captions):
        """n captions → (n, tokens, width) float32 embeddings (77×768 for SD 1.4).
        Long captions are cut, as CLIP does."""
        tokenizer = self.checkpoint.tokenizer
        tokens = tokenizer(captions, padding="max_length", truncation=True, max_length=tokenizer.model_max_length,
                           return_tensors="pt")
        return self.checkpoint.text_encoder(tokens.input_ids.to(self.device))[0].float()

    def prepare(self, stimuli):
        """(n, H, W, 3) uint8 → (n, 3, s, s) in [-1, 1] at the feature size (320 px for SD 1.4), for `encode`.

        `encode` of it is the feature `init_latent`, (n, 4, 40, 40). No sampling loop.
        """
        return images.to_network(stimuli, self.feature_size)

    def caption_features(self, captions):
        """n lists of captions → (n, tokens, width) float32 `c`: the mean of each image's caption embeddings."""
        counts = [len(of_image) for of_image in captions]
        embedded = self.embed([caption for of_image in captions for caption in of_image])
        return torch.stack([part.mean(0) for part in embedded.split(counts)])

    def start_image(self, latents):
        """Decoded latents at the feature size → (n, 3, size, size) in [-1, 1], the image that img2img starts from."""
        return enlarge(self.decode(latents.reshape(-1, *self.latent_shape)), self.size)

    def start_latents(self, latents, how="picture"):
        """Decoded latents at the feature size → (n, 4, h, w) latents of the model's size, which img2img starts from.

        how: "picture", decoded, enlarged and encoded again, as published; "latent", enlarged as they are, which spares
        two passes of the VAE.
        """
        if how == "picture":
            return self.encode(self.start_image(latents))
        found = latents.reshape(-1, *self.latent_shape).to(self.device)
        return torch.nn.functional.interpolate(found, (self.latent_side, self.latent_side), mode="bicubic")

    @lazy.inference_mode
    def img2img(self, start, conditioning, noise, *, strength=STRENGTH, steps=STEPS, guidance=GUIDANCE,
                guided_below=1.0, solver="ddim", extra=None, progress=True):
        """Noise the start images to `strength` of the schedule and denoise them under the conditioning.

        start (n, 4, h, w), the start images' latents, or None for pure noise (strength is then 1); conditioning
        (n, tokens, width), or None for the embedding of "" without guidance; noise (n, 4, h, w);
        extra: channels concatenated to the UNet's input, (n, k, h, w), as the depth model takes. guided_below: share of
        the noise schedule below which steps are guided; above, one pass does (Kynkäänniemi et al. 2024 find guidance
        at high noise to be of no use).
        Returns (n, 3, size, size) float32 in [-1, 1].

        Denoising starts at the very step that the noise was added for. The original adds the noise of one step later
        (its stochastic_encode counts from 0, its decode from 1), a difference of one step in 50.
        """
        plan = scheduler(solver, self.checkpoint.scheduler_config)
        plan.set_timesteps(steps, device=self.device)
        first = 0 if start is None else steps - min(int(steps * strength), steps)
        timesteps = plan.timesteps[first * plan.order:]
        if len(timesteps) == 0:
            raise Problem(f"strength {strength} of {steps} steps leaves no step to run",
                          "give a larger --strength or --steps")
        if hasattr(plan, "set_begin_index"):
            plan.set_begin_index(first * plan.order)
        noise = noise.to(self.device)
        latents = noise * plan.init_noise_sigma if start is None else plan.add_noise(
            start.to(self.device), noise, timesteps[:1].repeat(len(noise)))
        empty = self.embed([""]).expand(len(noise), -1, -1)
        for timestep in tqdm(timesteps, desc="denoising", unit="step", leave=False, disable=not progress):
            guided = timestep <= guided_below * plan.config.num_train_timesteps
            predicted = self.predict(plan.scale_model_input(latents, timestep), timestep, empty, conditioning,
                                     guidance if guided else 1, extra)
            latents = plan.step(predicted, timestep, latents).prev_sample
        return self.decode_denoised(latents)


def slice_of(side):
    """Pictures of side × side px that the VAE takes at once."""
    return max(1, VAE_PIXELS // side ** 2)


def enlarge(pixels, size):
    """(n, 3, h, w) → (n, 3, size, size), bicubic, in [-1, 1]."""
    return torch.nn.functional.interpolate(pixels, (size, size), mode="bicubic", antialias=True).clamp(-1, 1)


def depth_channel(depth, side):
    """(n, 1, h, w) depth maps in [-1, 1] → (n, 1, side, side), as the depth model takes them;
    unchanged at 64 for SD 2."""
    return torch.nn.functional.interpolate(depth, (side, side), mode="bicubic", antialias=True).clamp(-1, 1)
