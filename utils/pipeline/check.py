"""What a run will take on this machine, and what it lacks, on one screen and before anything runs.

Steps that are done count nothing; those half done count whole.
"""
import importlib.util
from dataclasses import dataclass, replace

import psutil

from utils.errors import Problem
from utils.models import architectures, checkpoints, loading
from utils.nsd import coco_captions, object_keys
from utils.pipeline import costs, machine, stages, status, study

# Roles that a script of each kind loads; evaluate.py does without its others, and says so.
ROLES = {"sd": ["sd"], "blip": ["blip"], "captions": ["blip"], "vgg19": ["vgg19"], "gan": ["vgg19", "generator"],
         "dpt": ["dpt"], "depth": ["dpt"], "features": costs.JUDGES, "evaluation": costs.JUDGES, "completion": ["sd"]}


@dataclass(frozen=True)
class Row:
    """A line of the screen: steps of one script. done: how many are. cost: their sum, but for memory, the largest."""

    script: str
    steps: int
    done: int
    cost: costs.Cost


def run(steps, args):
    """Print the screen; returns whether the run can begin. steps: of `graph.of`. args: of run_pipeline.py."""
    plan = [(step.command, step.args) for step in steps]
    root, what, unanswered, link = study.found(args.subject)
    local = root is not None and root.local
    here = machine.probe(args.workdir, args.gpu)
    priced = costs.Costs(what, here, link, local, plan)
    states = [state for state, _ in status.of(steps)]
    rows, todo = _rows(plan, states, priced)
    fetched = _checkpoints(todo)
    missing = [*([(unanswered.what, unanswered.todo)] if unanswered else _keys(root, todo)), *_weights(todo, fetched),
               *_room(rows, fetched, here)]
    print("\n".join(_screen(args, what, here, link, rows, fetched, missing, local)))
    return not missing


def _rows(plan, states, priced):
    """([Row] in order of first use, [(command, arguments)] that are not done)."""
    rows, todo = {}, []
    for (command, args), state in zip(plan, states, strict=True):
        before = rows.get(command[0], Row(command[0], 0, 0, costs.Cost(memory=0)))
        done = state == status.DONE
        cost = costs.Cost(memory=0) if done else priced.of(command, args)
        if not done:
            todo.append((command, args))
        rows[command[0]] = Row(command[0], before.steps + 1, before.done + done, _both(before.cost, cost))
    return list(rows.values()), todo


def _both(one, other):
    """Of two steps, one after the other."""
    return replace(one, network=one.network + other.network, disk=one.disk + other.disk,
                   seconds=one.seconds + other.seconds, memory=max(one.memory, other.memory),
                   gpu=max(one.gpu, other.gpu))


def roles(command, args):
    """Roles whose checkpoints a command loads."""
    kind = stages.KIND[command[0]]
    return ["sd_depth" if args.method == "depth" else "sd"] if kind == "images" else ROLES.get(kind, [])


def _needed(todo):
    """The roles of all commands, each once, in order of first use."""
    return list(dict.fromkeys(role for each in todo for role in roles(*each)))


def _checkpoints(todo):
    """{role: bytes to fetch} of the roles that the steps need and the cache lacks."""
    if checkpoints.choice() != "hub":
        return {}
    return {role: architectures.FILES[role] for role in _needed(todo)
            if role in architectures.FILES and not loading.is_cached(role)}


def _keys(root, todo):
    """What of NSD's files a step will ask for and is not there, with what to do."""
    kinds = {stages.KIND[command[0]]: args for command, args in todo}
    found = []
    if "stimuli" in kinds and not root.exists(object_keys.STIMULI_KEY):
        found.append((f"{root.name(object_keys.STIMULI_KEY)} is not there", "check NSD_ROOT"))
    if "sd" in kinds:
        found += [(problem.what, problem.todo) for problem in coco_captions.missing(root, kinds["sd"].workdir)]
    return found


def _weights(todo, fetched):
    """Roles that cannot be loaded from where NSD_MODELS says, with what to do."""
    found, needed = [], _needed(todo)
    for role in needed:
        try:
            checkpoints.source(role)
        except Problem as problem:
            found.append((problem.what, problem.todo))
            continue
        if checkpoints.choice() == "hub" and role in ("vgg19", "generator"):
            found.append((f"no hub carries the {role} of Kamitani Lab's cookbook", "see docs/models.md, or NSD_MODELS"))
        elif role in fetched and role in checkpoints.HUB and (why := checkpoints.unreachable(role)):
            found.append(why)
    if "vgg19" in needed and importlib.util.find_spec("bdpy") is None:
        found.append(("bdpy is not installed", "pip install bdpy"))
    return found


def _room(rows, fetched, here):
    """Where memory, disk or the card's memory do not hold a stage, with what to do."""
    found = []
    disk = sum(row.cost.disk for row in rows) + sum(fetched.values())
    if disk > here.disk:
        found.append((f"the run leaves {_size(disk)} on the disk, and {_size(here.disk)} are free",
                      "give another --workdir, or --preset night"))
    for row in rows:
        if row.cost.memory > here.memory:
            found.append((f"{row.script} holds {_size(row.cost.memory)}, and of {_size(psutil.virtual_memory().total)} "
                          f"{_size(here.memory)} are free", "close other programs, or run it on a larger machine"))
        if here.gpu is not None and row.cost.gpu > here.gpu:
            found.append((f"{row.script} holds {_size(row.cost.gpu)} of a GPU's memory, and {_size(here.gpu)} are free",
                          "pass --gpu -1 for the CPU"))
    return found


def _screen(args, what, here, link, rows, fetched, missing, local):
    """The lines."""
    kind = "SIMULATED small models" if checkpoints.simulated() else "published models"
    lines = [f"{args.subject}: {what.trials:,} trials of {what.stimuli:,} stimuli ({what.test:,} test) in "
             f"{what.sessions} sessions; {kind}"
             + (f"; ASSUMED, subj01's: {what.assumed}" if what.assumed else ""),
             f"{here.device}, {here.dtype}: a UNet step at {_rate(here.network)}, products at {_rate(here.float32)} "
             f"(float32) and {_rate(here.float64)} (float64); disk {here.write / 1e6:,.0f} MB/s; "
             + ("NSD on this disk" if local
                else f"link {link.total * 8 / 1e6:,.0f} Mbit/s, {link.latency * 1e3:.0f} ms"),
             *here.notes, "",
             f"{'step':<44}{'steps':>6}{'network':>10}{'disk':>10}{'memory':>10}{'time':>10}"]
    for row in rows:
        if row.done == row.steps:
            lines.append(f"{row.script:<44}{row.steps:>6}{'done':>40}")
            continue
        counted = f"{row.steps - row.done}/{row.steps}" if row.done else str(row.steps)
        lines.append(f"{row.script:<44}{counted:>6}{_size(row.cost.network):>10}{_size(row.cost.disk):>10}"
                     f"{_size(row.cost.memory):>10}{duration(row.cost.seconds):>10}")
    size, rate = sum(fetched.values()), max(link.total, 1e6)
    if fetched:
        lines.append(f"{'checkpoints: ' + ' '.join(fetched):<50}{_size(size):>10}{_size(size):>10}{'':>10}"
                     f"{duration(size / rate):>10}")
    total = [sum(getattr(row.cost, name) for row in rows) for name in ("network", "disk", "seconds")]
    lines.append(f"{'total (of memory the largest)':<50}{_size(total[0] + size):>10}{_size(total[1] + size):>10}"
                 f"{_size(max(row.cost.memory for row in rows)):>10}{duration(total[2] + size / rate):>10}")
    lines += ["", *(f"MISSING  {lacking} — {todo}" for lacking, todo in missing)]
    if not local and not what.assumed:
        lines.append("note     NSD's terms: accept them at http://naturalscenesdataset.org before its data are used")
    lines.append("cannot begin" if missing else "nothing is missing; times are estimates, within a factor of two")
    return lines


def _rate(operations):
    return f"{operations / 1e9:,.0f} GFLOP/s" if operations < 1e13 else f"{operations / 1e12:,.0f} TFLOP/s"


def _size(count):
    return f"{count / 1e9:.1f} GB" if count >= 0.95e9 else f"{count / 1e6:.0f} MB"


def duration(seconds):
    """Seconds for people: 3.5 h, 12 min, 40 s."""
    return (f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min" if seconds >= 60
            else f"{seconds:.0f} s")
