"""Presets of run_pipeline.py: settings of the stages that go together. A flag that is given wins over its preset.

docs/night.md has what each gives up on the simulated subject, and what it takes at NSD's real size.
"""
# "paper" is what the stages do by themselves. Flags by the names that run_pipeline.py's arguments have.
PRESETS = {
    "paper": {"n_samples": 5, "steps": 50, "scheduler": "ddim", "size": 1.0, "start": "picture", "guided_below": 1.0,
              "n_iter": 200, "learning_rate": 2.0},
    "night": {"n_samples": 1, "steps": 5, "scheduler": "unipc", "size": 0.8125, "start": "latent", "guided_below": 0.6,
              "n_iter": 50, "learning_rate": 0.3, "store": "float16", "occlude_on_read": True},
}


def apply(args):
    """Fill in the arguments that were not given from --preset."""
    for name, value in PRESETS.get(args.preset, {}).items():
        if getattr(args, name) in (None, False):
            setattr(args, name, value)
