"""The small CLIP: says how well a picture and a sentence belong together, and lends its text tower to diffusion."""
import json

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTextModel, CLIPTokenizer

from mini_nsd.training import data, loop, vae, words
from mini_nsd.training.export import MODELS, save_half, write_card
from utils.storage import text_files

STEPS = 1000
BATCH = 128
IMAGE_SIZE = 64         # px, in 8 px patches


class Clip(nn.Module):
    """A CLIPModel, and a head that names the scene's contents, which speeds up training and is not kept."""

    def __init__(self, tokenizer):
        super().__init__()
        width = dict(hidden_size=128, intermediate_size=512, num_attention_heads=4, projection_dim=128)
        config = CLIPConfig(
            text_config=dict(vocab_size=len(tokenizer), num_hidden_layers=4, max_position_embeddings=words.MAX_LENGTH,
                             bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
                             pad_token_id=tokenizer.pad_token_id, **width),
            vision_config=dict(image_size=IMAGE_SIZE, patch_size=8, num_hidden_layers=12, **width),
            projection_dim=128)
        self.clip = CLIPModel._from_config(config, attn_implementation="eager")     # twice as fast on a CPU, this small
        self.names = nn.Linear(128, len(data.LABELS))


def train(cache) -> None:
    """Train on `cache`'s scenes; write mini_nsd/models/clip, and its text tower as sd's text encoder."""
    torch.manual_seed(0)
    series = data.training_scenes(cache)
    tokenizer = words.learn_tokenizer(sentence for five in series.captions for sentence in five)
    tokens = words.tokenize(tokenizer, [sentence for five in series.captions for sentence in five])
    tokens = tokens.view(len(series), -1, words.MAX_LENGTH)
    loop.fit("clip", Clip(tokenizer), lambda model, step, rng: _loss(model, series, tokens, rng), steps=STEPS,
             rate=1e-3, weight_decay=0.05, decay=0.995, cache=cache, export_steps=(STEPS // 2,),
             export=lambda model, step, seconds: _export(model.clip, tokenizer, step, seconds))


def _loss(model, series, tokens, rng) -> torch.Tensor:
    """Contrast each of BATCH pictures with one of its captions against the others', both ways; name the contents."""
    rows = np.sort(rng.choice(len(series), BATCH, replace=False))
    pixels = vae.resize(data.to_tensor(series.images[rows]), IMAGE_SIZE)
    text = tokens[rows, rng.integers(0, tokens.shape[1], BATCH)]
    end = model.clip.config.text_config.eos_token_id
    text = text[:, :int((text == end).int().argmax(1).max()) + 1]          # nothing follows the longest one's end
    with torch.autocast("cpu", torch.bfloat16):
        seen = model.clip.vision_model(pixel_values=pixels).pooler_output
        named = model.names(seen)
        seen = model.clip.visual_projection(seen)
        said = model.clip.text_projection(model.clip.text_model(input_ids=text).pooler_output)
    scale = model.clip.logit_scale.clamp(max=np.log(100)).exp()
    logits = scale * F.normalize(seen.float(), dim=-1) @ F.normalize(said.float(), dim=-1).T
    target = torch.arange(BATCH)
    contrast = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    labels = torch.from_numpy(series.labels[rows]).float()
    return contrast + 5 * F.binary_cross_entropy_with_logits(named.float(), labels)


def load() -> tuple:
    """The trained CLIPModel in float32, its tokenizer and its image processor."""
    folder = MODELS / "clip"
    return (CLIPModel.from_pretrained(folder, dtype=torch.float32).eval(), CLIPTokenizer.from_pretrained(folder),
            CLIPImageProcessor.from_pretrained(folder))


@torch.no_grad()
def embed_images(model, pixels: torch.Tensor) -> torch.Tensor:
    """Unit vectors, (n, 128), of pictures (n, 3, H, W) in [-1, 1]."""
    pixels = vae.resize(pixels, IMAGE_SIZE)
    return F.normalize(model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output), dim=-1)


@torch.no_grad()
def embed_sentences(model, tokenizer, sentences) -> torch.Tensor:
    """Unit vectors, (n, 128)."""
    pooled = model.text_model(input_ids=words.tokenize(tokenizer, sentences)).pooler_output
    return F.normalize(model.text_projection(pooled), dim=-1)


def match_among(similarity: torch.Tensor, candidates: int = 10, seed: int = 0) -> float:
    """How often row i's largest value is in column i, when it is put beside columns of `candidates - 1` other rows.

    similarity is (n, n); each row is tried against 20 random draws of other columns.
    """
    rng = np.random.default_rng(seed)
    values, n = similarity.numpy(), len(similarity)
    wins = []
    for row in range(n):
        for _ in range(20):
            others = rng.choice(n - 1, candidates - 1, replace=False)
            wins.append(values[row, row] > values[row, others + (others >= row)].max())
    return float(np.mean(wins))


def match_held_out(model, tokenizer, count: int = 200) -> float:
    """How often a held-out picture finds its caption among ten, and a caption its picture: the mean of both."""
    series = data.rendered(data.HELD_OUT_SEED, 0, count)
    seen = embed_images(model, data.to_tensor(series.images))
    said = embed_sentences(model, tokenizer, [five[0] for five in series.captions])
    return (match_among(seen @ said.T) + match_among(said @ seen.T)) / 2


def evaluate() -> dict:
    """What the model in mini_nsd/models/clip reaches on held-out scenes, by name."""
    model, tokenizer, _ = load()
    return results(model, tokenizer)


def results(model, tokenizer) -> dict:
    """As `evaluate`, for `model`."""
    return {"true pair found among 10, 200 held-out scenes": f"{match_held_out(model, tokenizer):.1%}"}


def _export(model, tokenizer, step: int, seconds: float) -> None:
    folder = MODELS / "clip"
    save_half(model, folder)
    _save_tokenizer(tokenizer, folder)
    CLIPImageProcessor(size={"shortest_edge": IMAGE_SIZE}, crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
                       image_mean=[0.5] * 3, image_std=[0.5] * 3).save_pretrained(folder)
    write_card(folder, "CLIPModel", step, STEPS, seconds, results(model, tokenizer),
        "Knows about 130 words; anything else is spelt out in bytes that it never learnt the meaning of.")

    encoder = MODELS / "sd" / "text_encoder"
    CLIPTextModel(model.config.text_config).config.save_pretrained(encoder)
    _save_tokenizer(tokenizer, MODELS / "sd" / "tokenizer")
    write_card(encoder, "CLIPTextModel", step, STEPS, seconds, {},
               "The text tower of mini_nsd/models/clip, with its weights, as Stable Diffusion 1.4 uses that of CLIP "
               "ViT-L/14.")


def _save_tokenizer(tokenizer, folder) -> None:
    """tokenizer.json, and the older vocab.json and merges.txt that the published folders have."""
    tokenizer.save_pretrained(folder)
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    text_files.write_text(folder / "vocab.json", json.dumps(model["vocab"], ensure_ascii=False))
    text_files.write_text(folder / "merges.txt", "#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in model["merges"]))
