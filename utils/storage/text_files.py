"""CSV, JSON and text, written atomically and read strictly."""
import csv
import io
import json
from pathlib import Path

import numpy as np

from utils.errors import Problem
from utils.storage import provenance, writing


def write_text(path, text):
    """`text` in UTF-8, its lines ended by a line feed on every platform."""
    with writing.atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_csv(path, fields, rows, form, record=None):
    """Rows (dicts of `fields`, some may lack) as CSV, numbers with a fraction in the format `form`; and the record."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fields, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: f"{value:{form}}" if isinstance(value, (float, np.floating)) else value
                      for name, value in row.items()} for row in rows)
    with writing.atomic(path) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8", newline="\n")
        if record is not None:
            provenance.finish(path, record)


def read_csv(path):
    """Rows of a CSV as dicts of strings."""
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def write_json(path, content):
    write_text(path, json.dumps(content, indent=1, sort_keys=True) + "\n")


def read_json(path):
    """Raises Problem if the file is not a JSON object."""
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("no object")
    except (ValueError, RecursionError) as error:
        raise Problem(f"{path} is not valid JSON ({error})", "delete it and run its stage again") from error
    return found
