"""Writing trained models: half-precision safetensors, and a model card beside them."""
import copy
import shutil
from pathlib import Path

import torch

from mini_nsd.training import data
from utils.storage import text_files

MODELS = Path(__file__).resolve().parent.parent / "models"

# Parts that are another role's, file by file: copies, since a checkout on Windows has no links. Git stores each once.
COPIES = {
    "sd/text_encoder/model.safetensors": "clip/model.safetensors",
    "sd_depth/depth_estimator/config.json": "dpt/config.json",
    "sd_depth/depth_estimator/model.safetensors": "dpt/model.safetensors",
    "sd_depth/feature_extractor/preprocessor_config.json": "dpt/preprocessor_config.json",
    "sd_depth/scheduler/scheduler_config.json": "sd/scheduler/scheduler_config.json",
    "sd_depth/text_encoder/config.json": "sd/text_encoder/config.json",
    "sd_depth/text_encoder/model.safetensors": "clip/model.safetensors",
    "sd_depth/tokenizer/merges.txt": "sd/tokenizer/merges.txt",
    "sd_depth/tokenizer/tokenizer.json": "sd/tokenizer/tokenizer.json",
    "sd_depth/tokenizer/tokenizer_config.json": "sd/tokenizer/tokenizer_config.json",
    "sd_depth/tokenizer/vocab.json": "sd/tokenizer/vocab.json",
    "sd_depth/vae/config.json": "sd/vae/config.json",
    "sd_depth/vae/diffusion_pytorch_model.safetensors": "sd/vae/diffusion_pytorch_model.safetensors",
}

CARD = ("""# {title}

A small `{kind}` for the embedded default. **Trained on simulated scenes** (`mini_nsd/scenes.py`) """
"""and useful on nothing else.

| | |
|---|---|
| data | {scenes:,} rendered scenes, seed {seed}; none is a subject's stimulus |
| held out | scenes of seed {held_out} |
| steps | {step:,} of {steps:,} |
| time | {minutes:.0f} min on 2 shared CPU cores, no GPU |
| parameters | stored as float16 safetensors |
{results}
{note}

Retrain with `python -m mini_nsd.train {role}`.
""")


def copy_parts() -> None:
    """Bring every file of COPIES to what it is a copy of, where that is there."""
    for name, source in COPIES.items():
        if (MODELS / source).exists():
            (MODELS / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(MODELS / source, MODELS / name)


def save_half(model, folder: Path) -> None:
    """`save_pretrained` a float16 copy."""
    copy.deepcopy(model).to(torch.float16).save_pretrained(folder)


def write_card(folder: Path, kind: str, step: int, steps: int, seconds: float, results: dict, note: str) -> None:
    """README.md in `folder`: what the model is, what it was trained on, and its held-out `results` by name."""
    role = "/".join(folder.relative_to(MODELS).parts)
    rows = "".join(f"| {name} | {value} |\n" for name, value in results.items())
    text_files.write_text(folder / "README.md", CARD.format(
        title=f"mini_nsd/models/{role}", kind=kind, scenes=data.TRAIN_SCENES, seed=data.TRAIN_SEED,
        held_out=data.HELD_OUT_SEED, step=step, steps=steps, minutes=seconds / 60, results=rows, note=note,
        role=role.split("/")[-1] if role.startswith("sd/") else role))
