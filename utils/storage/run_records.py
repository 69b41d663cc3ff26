"""What the name of a run of reconstructions says, and whether its records say that the subject is simulated."""
import os
from dataclasses import dataclass

from utils import layout
from utils.storage import text_files


@dataclass(frozen=True)
class Run:
    """What the name of a run (see `layout.run_name`) says. kind: "result", "recovery" or "control"."""

    name: str
    method: str
    occluded: bool
    kind: str
    label: str

    @classmethod
    def of(cls, name):
        method, *parts = name.split("-")
        occluded = "occluded" in parts
        control = next((part for part in parts if part.startswith("shuffled")), None)
        kind = "control" if control else "recovery" if "true_features" in parts else "result"
        notes = {"only_z": "latent only", "only_c": "conditioning only", "true_features": "true features"}
        said = ["occluded"] if occluded else []
        said += [notes[part] for part in parts if part in notes] + (["shuffled trials"] if control else [])
        return cls(name, method, occluded, kind, ", ".join([method, *said]))


def is_simulated(ws):
    """True if the subject is a simulated one: NSD_MODELS is "tiny", or a run's record says so."""
    if os.environ.get("NSD_MODELS") == "tiny":
        return True
    manifests = [layout.manifest(ws.samples(run)) for run in ws.found_runs()]
    records = [text_files.read_json(path) for path in manifests if path.exists()]
    return any(record.get("simulated") or str(record.get("model", "")).startswith("tiny/") for record in records)


def who(ws, simulated=None):
    """The subject, and whether it is a simulated one (None: see `is_simulated`), for titles."""
    return ws.subject + (", simulated subject" if (is_simulated(ws) if simulated is None else simulated) else "")
