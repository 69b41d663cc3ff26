"""Writing trained models: half-precision safetensors, and a model card beside them."""
import copy
from pathlib import Path

import torch

from mini_nsd.training import data

MODELS = Path(__file__).resolve().parent.parent / "models"

CARD = """# {title}

A small `{kind}` for the embedded default. **Trained on simulated scenes** (`mini_nsd/scenes.py`) and useful on nothing else.

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
"""


def save_half(model, folder: Path) -> None:
    """`save_pretrained` a float16 copy."""
    copy.deepcopy(model).to(torch.float16).save_pretrained(folder)


def write_card(folder: Path, kind: str, step: int, steps: int, seconds: float, results: dict, note: str) -> None:
    """README.md in `folder`: what the model is, what it was trained on, and its held-out `results` by name."""
    role = "/".join(folder.relative_to(MODELS).parts)
    rows = "".join(f"| {name} | {value} |\n" for name, value in results.items())
    (folder / "README.md").write_text(CARD.format(
        title=f"mini_nsd/models/{role}", kind=kind, scenes=data.TRAIN_SCENES, seed=data.TRAIN_SEED,
        held_out=data.HELD_OUT_SEED, step=step, steps=steps, minutes=seconds / 60, results=rows, note=note,
        role=role.split("/")[-1] if role.startswith("sd/") else role))
