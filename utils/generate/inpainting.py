"""What a diffusion model makes up behind an occluder when no brain tells it: the no-brain control of completion.

The visible latents are kept at every step at the noise level of that step, the hidden ones are free (Lugmayr et al.
2022, RePaint, without its resampling).
"""
import numpy as np

from utils import images, lazy
from utils.generate import diffusion

torch = lazy.module("torch")


@lazy.inference_mode
def inpaint(model, shown, hidden, noise, conditioning=None, *, steps=20, guidance=diffusion.GUIDANCE, solver="ddim"):
    """(n, s, s, 3) uint8: the pictures with their hidden part made up.

    model: a `diffusion.LatentDiffusion`. shown (n, H, W, 3) uint8, hidden (n, H, W) bool. noise (n, 4, h, w), see
    `diffusion.sample_noise`. conditioning (n, tokens, width), or None for the embedding of "" without guidance. The
    hidden part is filled with the visible part's mean colour before the encoder sees it, so that the occluder's own
    colour does not bleed into its surroundings.
    """
    filled = shown.copy()
    for picture, mask in zip(filled, hidden):
        picture[mask] = picture[~mask].mean(0)
    kept = model.encode(images.to_network(filled, model.size))
    free = torch.nn.functional.interpolate(torch.from_numpy(hidden[:, None].astype(np.float32)), kept.shape[-2:],
                                           mode="area").to(kept.device) > 0
    plan = diffusion.scheduler(solver, model.checkpoint.scheduler_config)
    plan.set_timesteps(steps, device=model.device)
    noise = noise.to(model.device)
    latents = noise * plan.init_noise_sigma
    empty = model.embed([""]).expand(len(noise), -1, -1)
    for timestep in plan.timesteps:
        latents = torch.where(free, latents, plan.add_noise(kept, noise, timestep.repeat(len(noise))))
        predicted = model.predict(plan.scale_model_input(latents, timestep), timestep, empty, conditioning, guidance)
        latents = plan.step(predicted, timestep, latents).prev_sample
    return images.to_pixels(model.decode_denoised(torch.where(free, latents, kept)), model.size)
