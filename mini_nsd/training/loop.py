"""The training loop that every role shares: warm-up and cosine decay, averaged weights, resumable."""
import copy
import math
import os
import time
from pathlib import Path

import numpy as np
import torch

from mini_nsd.training.muon import Muon, suits
from utils.models import loading

CHECKPOINT_SECONDS = 120
WARM_UP = 100           # steps


def half() -> torch.autocast:
    """Products in bfloat16 where the processor multiplies it natively; emulated, it is 13 times slower than float32."""
    return torch.autocast("cpu", torch.bfloat16, enabled=loading.cpu_has_bfloat16())


def fit(name: str, model: torch.nn.Module, loss_of, *, steps: int, rate: float, cache: Path, export,
        export_steps=(), decay: float = 0.999, weight_decay: float = 0.01, muon_rate: float = 0.0) -> None:
    """Minimise `loss_of(model, step, rng)` over `model`'s trainable parameters.

    loss_of       returns a scalar tensor; all its randomness comes from `rng` and torch's global generator, which are
                  both seeded by the step, so that a resumed run goes on as the interrupted one would have
    export        called as export(averaged_model, step, seconds) after each of `export_steps` and after the last step
    rate          AdamW's peak learning rate; with a `muon_rate`, Muon trains the matrices at that, AdamW the rest
    decay         of the exponential average of the weights, which is what is exported
    The state is kept in `cache/{name}.pt` and the loss in `cache/{name}.log`.
    """
    cache.mkdir(parents=True, exist_ok=True)
    checkpoint = cache / f"{name}.pt"
    averaged = copy.deepcopy(model).eval().requires_grad_(False)
    parameters = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for p in parameters if muon_rate and suits(p)]
    others = [p for p in parameters if not (muon_rate and suits(p))]
    optimisers = {"optimiser": torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.98), weight_decay=weight_decay)}
    if matrices:
        optimisers["muon"] = Muon(matrices, lr=muon_rate)
    peaks = {"optimiser": rate, "muon": muon_rate}
    start, seconds = 0, 0.0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        averaged.load_state_dict(state["averaged"])
        for key, optimiser in optimisers.items():
            optimiser.load_state_dict(state[key])
        start, seconds = state["step"], state["seconds"]

    model.train()
    began = saved = time.monotonic()
    losses = []
    for step in range(start, steps):
        share = min((step + 1) / WARM_UP, 0.02 + 0.98 * (0.5 + 0.5 * math.cos(math.pi * step / steps)))
        for key, optimiser in optimisers.items():
            for group in optimiser.param_groups:
                group["lr"] = peaks[key] * share
        torch.manual_seed(step)
        loss = loss_of(model, step, np.random.default_rng((TRAINING_STREAM, step)))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimiser in optimisers.values():
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        _average(averaged, model, min(decay, (step + 1) / (step + 10)))
        losses.append(float(loss.detach()))
        done, now = step + 1, time.monotonic()
        if done % 50 == 0:
            with open(cache / f"{name}.log", "a", encoding="utf-8") as log:
                log.write(f"{done}/{steps} loss {np.mean(losses[-50:]):.4f} {seconds + now - began:.0f} s\n")
        if now - saved > CHECKPOINT_SECONDS or done == steps:
            saved = now
            _save(checkpoint, dict(model=model.state_dict(), averaged=averaged.state_dict(), step=done,
                                   seconds=seconds + now - began,
                                   **{key: optimiser.state_dict() for key, optimiser in optimisers.items()}))
        if done in export_steps and done < steps:
            export(averaged, done, seconds + now - began)
    export(averaged, steps, seconds + time.monotonic() - began)


TRAINING_STREAM = 7     # keeps the batches' random numbers apart from the scenes' own


@torch.no_grad()
def _average(averaged, model, decay: float) -> None:
    old, new = list(averaged.parameters()), list(model.parameters())
    torch._foreach_lerp_(old, new, 1 - decay)
    for kept, current in zip(averaged.buffers(), model.buffers()):
        kept.copy_(current)


def _save(path: Path, state: dict) -> None:
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    os.replace(partial, path)
