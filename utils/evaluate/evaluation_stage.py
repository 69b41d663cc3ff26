"""What evaluate.py does around the table, the captions' scores and the held-out check: in order, written, and told."""
import numpy as np

from utils import cli, layout
from utils.errors import Problem
from utils.evaluate import caption_scores, held_out_clusters, identification, papers_table
from utils.generate import captioning
from utils.models import checkpoints, loading
from utils.nsd import trials
from utils.storage import provenance, run_records, text_files

CAPTIONS = ("captions", "dataset", "control", "metric", "direction", "value", "low", "high", "chance", "n_images",
            "note")
READING = (
    "Decoders refitted without the training stimuli of each test image's own cluster (Shirakawa et al. 2024); "
    "identification of decoded features, chance 50. Within the cluster, what stays above chance was not learnt from "
    "that cluster: decoding goes beyond picking among training clusters. Among all, near or below chance says that "
    "unseen kinds are decoded as seen ones. Random removal, of as many stimuli of other clusters, says how much of a "
    "drop is lost data, not lost kind.")


def run(args):
    """Evaluate one subject; returns the lines to print."""
    ws, device = layout.Workspace.of(args), cli.device(args.gpu)
    if not ws.found_runs():
        raise Problem(f"{args.workdir} has no reconstructions of {args.subject}", "run diffusion_decoding.py first")
    text = [papers_table.markdown(ws, _table(args, ws, device))]
    text.append(_captions(args, ws, device))
    path = ws.evaluation_result("held_out", "csv")
    if args.held_out_clusters:
        checked, record = held_out_clusters.run(args, ws, device)
        if checked is not None:
            text_files.write_csv(path, held_out_clusters.FIELDS, checked, papers_table.FORM,
                                 record | {"simulated": run_records.is_simulated(ws)})
    if path.exists():
        text.append(held_out_markdown(ws, text_files.read_csv(path)))
        if not args.held_out_clusters:
            made = text_files.read_json(layout.sidecar(path))["options"]["clusters"]
            text.append(f"Made before; --held_out_clusters {made} checks that it is of the decoders there are now.\n")
    text_files.write_text(ws.evaluation_result("evaluation", "md"), "\n".join(text))
    return "\n".join(text)


def _table(args, ws, device):
    """Rows of the table, written; each run's pictures are measured unless they were."""
    absent, rows, runs = papers_table.absent_roles(device), [], {}
    found = ws.found_runs()
    for run in papers_table.expected_runs(ws):
        try:
            if run not in found:
                raise Problem("no pictures", "run run_pipeline.py with its method, dataset or --controls")
            papers_table.Pictures(ws.samples(run))
        except Problem as problem:
            rows += papers_table.rows_of(run, None, args.seed, f"not run: {problem}")
            continue
        path = papers_table.evaluate(ws, run, device, absent, args.overwrite)
        runs[run] = text_files.read_json(layout.sidecar(path))["pictures_digest"]
        rows += papers_table.rows_of(run, path, args.seed)
    record = provenance.record(papers_table.SCRIPT, {"subject": args.subject, "seed": args.seed}, runs=runs,
                               absent=absent, simulated=run_records.is_simulated(ws))
    text_files.write_csv(ws.evaluation_result("evaluation", "csv"), papers_table.FIELDS, rows, papers_table.FORM,
                         record)
    return rows


def _captions(args, ws, device):
    """The captions' part of the text; their table is written. Says so where none are decoded, or people's missing."""
    try:
        rows, read = caption_rows(ws, device, args.seed)
    except Problem as problem:
        cli.say(f"captions: not scored, {' '.join(str(problem).split())}")
        return f"Decoded captions: not scored ({' '.join(problem.what.split())}).\n"
    if not rows:
        return "Decoded captions: none (decode_captions.py makes them).\n"
    record = provenance.record(papers_table.SCRIPT, {"subject": args.subject, "seed": args.seed}, read,
                               network=checkpoints.identity("clip"), **loading.arithmetic(device),
                               simulated=run_records.is_simulated(ws))
    text_files.write_csv(ws.evaluation_result("captions", "csv"), CAPTIONS, rows, papers_table.FORM, record)
    return captions_markdown(ws, rows)


def caption_rows(ws, device, seed):
    """(rows of CAPTIONS, files read) of all files of decoded captions; last, of people's own captions."""
    found = ws.found_captions()
    if not found:
        return [], []
    count = len(trials.test_stimuli(ws))
    references = captioning.people(ws, ws.workdir)
    embed = caption_scores.clip_text_features(device)
    made = []
    for path, target, dataset, control in found:
        said = {None: "", "true_features": "true features"}.get(control, "shuffled trials")
        made += _caption_rows((target.removesuffix("_occluded"), dataset, said), caption_scores.score(
            captioning.read(path, count, "decode_captions.py"), references, embed, seed), seed)
    if caption_scores.people_can_be_scored(references):
        made += _caption_rows(("people", "nsd", ""), caption_scores.score(None, references, embed, seed), seed,
                              "each true caption against the image's others, a ceiling")
    return made, [path for path, *_ in found]


def _caption_rows(names, scored, seed, note=""):
    each, chance = scored["per_image"], 100 * identification.CHANCE
    if each is None:
        raise Problem("a single image's captions cannot be told from others", "decode at least two")
    metrics = {"CLIP text similarity": (np.array(each["similarity"]), scored["similarity_others"]),
               "CLIP text identification": (100 * np.array(each["identification"]), chance),
               "word F1": (np.array(each["overlap"]), scored["overlap_others"])}
    return [dict(zip(CAPTIONS, (*names, metric, "higher", float(values.mean()),
                                *map(float, identification.interval(values, seed)), other, len(values), note)))
            for metric, (values, other) in metrics.items()]


def captions_markdown(ws, rows):
    """The table of captions in Markdown."""
    lines = [f"## Decoded captions of {run_records.who(ws)}", "",
             "| captions | images | metric | value [95%] | chance |", "|---|---|---|---|---|"]
    for row in rows:
        label = ", ".join(part for part in (row["captions"], row["dataset"], row["control"]) if part)
        digits = 1 if "identification" in row["metric"] else 3
        value = _interval(row["value"], row["low"], row["high"], digits)
        lines.append(f"| {label} | {row['n_images']} | {row['metric']} | {value} | {row['chance']:.{digits}f} |")
    return "\n".join([
        *lines, "", "Similarity: mean cosine to the image's true captions in CLIP's text space; chance: to those of "
        "other images. Identification in percent. All are means over leaving each true caption out in turn; \"people\" "
        "scores the one left out.", ""])


def held_out_markdown(ws, rows):
    """The check's pooled rows in Markdown; each cluster's are in the CSV."""
    lines = [f"## Held-out clusters of {run_records.who(ws)}", "",
             "| target, ROI | images | removed | metric | all stimuli | held out | drop [95%] |",
             "|---|---|---|---|---|---|---|"]
    for row in (row for row in rows if row["cluster"] == "all"):
        full, left, drop, low, high = (float(row[name]) for name in ("full", "held_out", "drop", "low", "high"))
        lines.append(f"| {row['target']}, {row['roi']} | {row['n_test']} | {row['n_train_removed']} | {row['metric']} "
                     f"| {full:.1f} | {left:.1f} | {_interval(drop, low, high, 1)} |")
    return "\n".join([*lines, "", READING, ""])


def _interval(value, low, high, digits):
    value, low, high = (f"{round(each, digits) + 0.0:.{digits}f}" for each in (value, low, high))  # never -0.0
    return f"{value} [{low}, {high}]"
