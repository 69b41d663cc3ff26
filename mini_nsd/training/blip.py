"""The small BLIP: sees a picture as 26 tokens, and says in a sentence what stands in it, the nearest object first."""
import re
from collections import Counter

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers import BertTokenizer, BlipConfig, BlipForConditionalGeneration, BlipImageProcessor

from mini_nsd import scene_rendering, scene_sampling, scenes
from mini_nsd.training import data, loop, vae
from mini_nsd.training.export import MODELS, save_half, write_card
from utils.generate import captioning
from utils.storage import text_files

STEPS = 5000
BATCH = 64
PATCH = 16              # px
FULL_EVERY = 6          # of every so many steps, one is at the full 128 px; the others at the 80 px of the feature
MAX_TOKENS = captioning.BEAMS["max_length"]
VAGUE = re.compile("closest of|only|picture of")
LETTERS = "abcdefghijklmnopqrstuvwxyz"


class Blip(nn.Module):
    """BlipForConditionalGeneration, and a head that names the contents, which speeds up training and is not kept."""

    def __init__(self, tokenizer):
        super().__init__()
        width = dict(hidden_size=128, intermediate_size=256, num_attention_heads=4)
        # As in the published checkpoint, the token that starts a caption lies beyond the tokenizer's vocabulary.
        config = BlipConfig(
            text_config=dict(vocab_size=len(tokenizer) + 2, num_hidden_layers=2, max_position_embeddings=32,
                             bos_token_id=len(tokenizer), sep_token_id=tokenizer.sep_token_id,
                             eos_token_id=tokenizer.sep_token_id, pad_token_id=tokenizer.pad_token_id, **width),
            vision_config=dict(image_size=data.SIZE, patch_size=PATCH, num_hidden_layers=6, initializer_range=0.02,
                               **width))
        config.caption_prompt = ""  # its captions are learnt from the bare start token
        self.blip = BlipForConditionalGeneration(config)
        self.names = nn.Linear(128, len(data.LABELS))


def learn_tokenizer(captions) -> BertTokenizer:
    """A BertTokenizer that knows every word of `captions`, and spells any other in letters."""
    counts = Counter(word for caption in captions for word in re.findall(r"[a-z]+|[^\sa-z]", caption.lower()))
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces = [*LETTERS, *(f"##{letter}" for letter in LETTERS), *sorted(counts)]
    return BertTokenizer(vocab={token: number for number, token in enumerate(dict.fromkeys(special + pieces))},
                         model_max_length=512)


def train(cache) -> None:
    """Train on `cache`'s scenes and write mini_nsd/models/blip."""
    torch.manual_seed(0)
    series = data.training_scenes(cache)
    tokenizer = learn_tokenizer(sentence for five in series.captions for sentence in five)
    tokens = _tokens(tokenizer, series.captions)
    mirrored = _mirror(tokenizer, len(tokenizer) + 2)
    loop.fit("blip", Blip(tokenizer), lambda model, step, rng: _loss(model, series, tokens, mirrored, step, rng),
             steps=STEPS, rate=1e-3, weight_decay=0.05, decay=0.998, cache=cache,
             export=lambda model, step, seconds: _export(model.blip, tokenizer, step, seconds))


def _tokens(tokenizer, captions) -> torch.Tensor:
    """(n, 5, MAX_TOKENS) int64: start, words, end, padding.

    A caption gives way to another of its scene's if it is too long for BLIP's beams, so that the model learns to finish
    in time, or if it is VAGUE: beams prefer what fits many pictures, unless the training captions are filtered, as
    BLIP's own were (Li et al. 2022, §3.3).
    """
    out = torch.full((len(captions), 5, MAX_TOKENS), tokenizer.pad_token_id)
    for scene, five in enumerate(captions):
        told = [(numbers, VAGUE.search(caption)) for numbers, caption in zip(tokenizer(five).input_ids, five)]
        short = [(numbers, vague) for numbers, vague in told if len(numbers) <= MAX_TOKENS] or told
        kept = [numbers for numbers, vague in short if not vague] or [numbers for numbers, _ in short]
        for place in range(5):
            numbers = kept[place % len(kept)][:MAX_TOKENS]
            out[scene, place, :len(numbers)] = torch.tensor([len(tokenizer), *numbers[1:]])
    return out


def _mirror(tokenizer, size) -> torch.Tensor:
    """For each token, the one that holds in a mirror: left ↔ right."""
    found = torch.arange(size)
    left, right = tokenizer.convert_tokens_to_ids(["left", "right"])
    found[left], found[right] = right, left
    return found


def _loss(model, series, tokens, mirrored, step: int, rng) -> torch.Tensor:
    """Next words of one caption of each of BATCH pictures, half of them mirrored; and what is in the scene."""
    full = step % FULL_EVERY == 0
    rows = np.sort(rng.choice(len(series), BATCH // 2 if full else BATCH, replace=False))
    pixels = data.to_tensor(series.images[rows])
    pixels = pixels if full else vae.resize(pixels, round(data.SIZE * captioning.FEATURE_SHARE))
    text = tokens[rows, rng.integers(0, 5, len(rows))]
    if rng.random() < 0.5:
        pixels, text = pixels.flip(-1), mirrored[text]
    pad = model.blip.config.text_config.pad_token_id
    text = text[:, :int((text != pad).sum(1).max())]
    with loop.half():
        seen = model.blip.vision_model(pixel_values=pixels, interpolate_pos_encoding=True).last_hidden_state
        named = model.names(seen.mean(1))
        said = model.blip.text_decoder(input_ids=text, attention_mask=(text != pad).long(),
                                       encoder_hidden_states=_blurred(seen, rng)).logits
    words = F.cross_entropy(said[:, :-1].float().flatten(0, 1), text[:, 1:].flatten(), ignore_index=pad)
    labels = torch.from_numpy(series.labels[rows]).float()
    return words + 5 * F.binary_cross_entropy_with_logits(named.float(), labels)


def _blurred(embeddings, rng) -> torch.Tensor:
    """Embeddings, half of them drawn towards the batch's mean and noised, as those decoded from the brain will be."""
    count = len(embeddings) // 2
    clean, blurred = embeddings[count:], embeddings[:count]
    mean = embeddings.mean(0, keepdim=True)
    share = torch.from_numpy(rng.uniform(0.4, 1, (count, 1, 1)).astype(np.float32))
    spread = (embeddings - mean).pow(2).mean((0, 1)).sqrt().detach()
    noise = torch.randn_like(blurred) * spread * (1 - share)
    return torch.cat([mean + share * (blurred - mean) + noise, clean])


def load() -> captioning.Captioner:
    """The trained model in float32, as the pipeline uses it."""
    folder = MODELS / "blip"
    return captioning.Captioner(
        BlipForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval(),
        BertTokenizer.from_pretrained(folder), BlipImageProcessor.from_pretrained(folder))


def first_thing(caption: str) -> tuple:
    """The first colour and shape that a caption names together, or ()."""
    found = re.search(rf"\b({'|'.join(scenes.COLOURS)}) ({'|'.join(scenes.SHAPES)})\b", caption)
    return found.groups() if found else ()


def names_front(captioner, count: int = 300) -> tuple:
    """How often a held-out picture's caption first names the nearest object's colour and shape; and the captions."""
    series = [scene_sampling.sample(data.HELD_OUT_SEED, index) for index in range(count)]
    pictures = np.stack([scene_rendering.render(scene, data.SIZE).image for scene in series])
    captions = [caption for start in range(0, count, 50)
                for caption in captioner.caption(captioner.embed(captioner.prepare(pictures[start:start + 50])))]
    right = [first_thing(caption) == (scene.objects[0].colour, scene.objects[0].shape)
             for scene, caption in zip(series, captions)]
    return float(np.mean(right)), captions


def evaluate() -> dict:
    """What the model in mini_nsd/models/blip reaches on held-out scenes, by name."""
    captioner = load()
    share, _ = names_front(captioner)
    return {"size": f"{sum(p.numel() for p in captioner.network.parameters()):,} parameters",
            "caption first names the nearest object's colour and shape, 300 held-out scenes at 80 px": f"{share:.1%}"}


def _export(model, tokenizer, step: int, seconds: float) -> None:
    folder = MODELS / "blip"
    save_half(model, folder)
    tokenizer.save_pretrained(folder)
    words = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    # As the published folder has.
    text_files.write_text(folder / "vocab.txt", "".join(f"{word}\n" for word, _ in words))
    BlipImageProcessor(size={"height": data.SIZE, "width": data.SIZE}, image_mean=[0.5] * 3,
                       image_std=[0.5] * 3).save_pretrained(folder)
    write_card(folder, "BlipForConditionalGeneration", step, STEPS, seconds, evaluate(),
               "Embeds a picture at 80 px (5/8 of its 128, as 240 px is of the published model's 384) as 26×128. "
               "Learnt no caption that fits many pictures (\"… is the closest of three objects\"). In training, "
               "half of the embeddings were shrunk and noised before they were put into words, so that captions "
               "survive decoding from the brain; the published BLIP had no such training.")
