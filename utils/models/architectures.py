"""How large the networks of the roles are: operations, weights, features, files; and Stable Diffusion's configuration.

Counted, not measured (tests/models/test_architectures.py counts again). Two columns: the published checkpoints, and the
small ones of the simulated world.
"""
from utils.models import checkpoints

# CompVis/stable-diffusion-v1-4, as in its folders' config.json
VAE = dict(block_out_channels=(128, 256, 512, 512), down_block_types=("DownEncoderBlock2D",) * 4,
           up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=2, latent_channels=4, norm_num_groups=32,
           sample_size=512)
UNET = dict(sample_size=64, block_out_channels=(320, 640, 1280, 1280), cross_attention_dim=768, attention_head_dim=8,
            layers_per_block=2, down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
            up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3)
TEXT = dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, vocab_size=49408,
            max_position_embeddings=77, projection_dim=768, hidden_act="quick_gelu")
SCHEDULE = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000,
                steps_offset=1, set_alpha_to_one=False, clip_sample=False)

PUBLISHED, SMALL = 0, 1
# Floating-point operations of one item (a product and a sum count two), (published, small).
OPERATIONS = {
    "unet": (8.033e11, 5.613e8),              # one latent at the checkpoint's own size, not guided
    "unet at feature size": (2.865e11, 2.326e8),
    "encode": (1.1167e12, 1.4956e9),          # the VAE, a picture of the checkpoint's own size
    "encode at feature size": (4.280e11, 5.842e8),
    "decode": (2.5145e12, 4.8575e9),
    "decode at feature size": (9.741e11, 1.8975e9),
    "text": (1.330e10, 5.03e7),               # one caption
    "blip": (4.054e10, 4.789e7),              # one picture's embedding
    "caption": (8.0e10, 5.131e7),             # from an embedding, three beams of up to 20 tokens
    "dpt": (3.821e11, 8.611e7),               # one picture's hidden states
    "depth": (1.343e11, 2.314e8),             # a map from them
    "vgg19": (3.926e10, 5.185e7),
    "generator": (2.013e9, 3.296e7),
    "inception": (1.143e10, 4.314e7), "alexnet": (2.404e9, 1.0034e8), "clip": (1.6202e11, 3.099e8),
    "efficientnet": (1.487e9, 0.0), "swav": (8.178e9, 0.0),
}
# Numbers that a network's weights are.
WEIGHTS = {
    "unet": (859_520_964, 3_782_084), "vae": (83_653_863, 3_236_095), "text": (123_060_480, 892_160),
    "blip": (223_971_644, 1_339_022), "dpt": (343_030_465, 962_621), "vgg19": (143_667_240, 580_990),
    "generator": (56_097_891, 1_076_243), "inception": (27_161_264, 1_403_100), "alexnet": (61_100_840, 304_884),
    "clip": (427_616_513, 4_825_600), "efficientnet": (7_794_184, 0), "swav": (25_557_032, 0),
}
# Numbers of an image's features.
DIMS = {
    "init_latent": (6_400, 400), "c": (59_136, 4_096), "blip": (173_568, 3_328), "dpt": (590_848, 6_240),
    "conv1_2": (3_211_264, 32_768), "conv2_2": (1_605_632, 16_384), "conv3_4": (802_816, 8_192),
    "conv4_4": (401_408, 4_096), "conv5_4": (100_352, 1_024), "fc6": (4_096, 384), "fc7": (4_096, 384),
    "fc8": (1_000, 54), "judged": (79_728, 8_000),  # judged: the usual evaluation features together
}
# Bytes that a role's files are (docs/models.md).
FILES = {"sd": 4.27e9, "sd_depth": 5e9, "blip": 0.99e9, "dpt": 1.37e9, "clip": 1.71e9, "inception": 0.11e9,
         "alexnet": 0.24e9, "efficientnet": 0.03e9, "swav": 0.11e9}


def dims(feature):
    """Numbers of an image's feature, by the feature's name: of one of DPT's states, of whole or of occluded images."""
    name = feature.removesuffix("_occluded")
    return of(DIMS, "dpt" if name.startswith("dpt_emb") else name)


def of(table, name):
    """The number of a table above for the checkpoints that NSD_MODELS names."""
    return table[name][SMALL if checkpoints.simulated() else PUBLISHED]
