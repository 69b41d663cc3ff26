"""A byte-level BPE tokenizer of CLIP's kind, learnt from the training captions."""
import json

from tokenizers import pre_tokenizers, trainers
from transformers import CLIPTokenizer

MAX_LENGTH = 32         # tokens, as many as the text encoder has positions
MERGES = 400            # enough for every word of the captions to be one token


def learn_tokenizer(captions) -> CLIPTokenizer:
    """A CLIPTokenizer for `captions`, an iterable of strings; like the original it can spell any other text."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    base = letters + [letter + "</w>" for letter in letters]
    blank = CLIPTokenizer().backend_tokenizer
    blank.train_from_iterator(captions, trainers.BpeTrainer(
        vocab_size=len(base) + MERGES, initial_alphabet=letters, end_of_word_suffix="</w>", show_progress=False))
    merges = [tuple(pair) for pair in _merges_of(blank)][:MERGES]
    tokens = base + ["".join(pair) for pair in merges] + ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=MAX_LENGTH)


def _merges_of(tokenizer) -> list:

    return json.loads(tokenizer.to_str())["model"]["merges"]


def tokenize(tokenizer, sentences, padding="max_length"):
    """Token numbers, (len(sentences), MAX_LENGTH) int64; or as short as the longest with padding="longest"."""
    return tokenizer(list(sentences), padding=padding, truncation=True, max_length=MAX_LENGTH,
                     return_tensors="pt").input_ids
