"""The small depth-conditioned diffusion model: sd's UNet with a map of what is near as its fifth input channel."""
import os

import numpy as np
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor

from mini_nsd.training import clip, data, dpt, loop, unet
from mini_nsd.training.export import MODELS, save_half, write_card
from utils import depth as depths
from utils import diffusion, models

STEPS = 1200
SHARED = {"vae": "sd", "text_encoder": "sd", "tokenizer": "sd", "scheduler": "sd"}     # linked, not copied
INDEX = {
    "_class_name": "StableDiffusionDepth2ImgPipeline",
    "vae": ["diffusers", "AutoencoderKL"], "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"], "unet": ["diffusers", "UNet2DConditionModel"],
    "scheduler": ["diffusers", "DDIMScheduler"], "depth_estimator": ["transformers", "DPTForDepthEstimation"],
    "feature_extractor": ["transformers", "DPTImageProcessor"],
}
