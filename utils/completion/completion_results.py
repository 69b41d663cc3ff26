"""The completion analysis's tables: their columns, reading them, and a line on each row for a reader."""
import numpy as np

from utils.completion import closeness, picture_features
from utils.storage import arrays, text_files, writing

FIELDS = ("roi", "feature", "primary", "index", "low", "high", "p", "p_corrected", "smallest_p", "truth",
          "enough_signal", "decoded_r2", "whole", "whole_low", "whole_high", "reliability", "hidden", "hidden_low",
          "hidden_high", "images", "views", "voxels")
MARGINS = ("roi", "margin", "index", "low", "high")
PATTERNS = ("roi", "object_completion", "completion_low", "completion_high",
            "occlusion_invariance", "invariance_low", "invariance_high")
CLOSENESS = ("roi", "feature", "source", *closeness.FIELDS)
FORM = ".6g"


def read_table(ws):
    """Rows of index.csv as {field: value}: numbers as float (NaN where empty), yes and no as bool."""
    return _read_csv(ws.completion_result("index", "csv"))


def read_closeness(ws):
    """Rows of closeness.csv as {field: value}, see CLOSENESS; [] where there is none."""
    path = ws.completion_result("closeness", "csv")
    return _read_csv(path) if path.exists() else []


def _read_csv(path):
    def value(field, text):
        if field in ("roi", "feature", "source"):
            return text
        return text == "True" if field in ("primary", "enough_signal") else float(text or "nan")

    return [{field: value(field, text) for field, text in row.items()} for row in text_files.read_csv(path)]


def write_decoded(ws, material, pairs, decoded):
    """What came back, picture by picture: (views, 20, 20, 3) luminance, red–green, blue–yellow."""
    shape = (-1, picture_features.GRID, picture_features.GRID, 3)
    mean, sd = material.units["local"]
    views = material.views
    size = np.float16().nbytes * material.guess["local"].size * (2 + len(decoded))
    with writing.atomic(ws.completion_result("decoded", "h5")) as temporary, arrays.new_h5(temporary, size) as file:
        file["stim_ids"] = np.array([stimulus for stimulus, _ in pairs], np.int64)
        file["mask_ids"] = np.array([mask for _, mask in pairs], object)
        file["gone"] = material.gone
        hidden = ~np.isnan(material.guess["local"])
        file["hidden"] = hidden.reshape(shape)[..., 0]
        file["truth"] = (material.features["local"][1][views.rows] * sd + mean).reshape(shape).astype(np.float16)
        file["context"] = (material.guess["local"] * sd + mean).reshape(shape).astype(np.float16)
        for roi, values in decoded.items():
            file[f"decoded/{roi}"] = values.reshape(shape).astype(np.float16)
        file.attrs["channels"] = ["luminance - 0.5", "red - green", "blue - (red + green) / 2"]


def sentence(row):
    """One line for a reader."""
    known = "" if np.isnan(row["truth"]) else f", SIMULATED truth {row['truth']:.2f}"
    hidden = "" if np.isnan(row["hidden"]) else (f"; wholly hidden objects {row['hidden']:.2f} "
                                                 f"[{row['hidden_low']:.2f}, {row['hidden_high']:.2f}]")
    if not row["enough_signal"]:
        return (f"{row['roi']} ({row['feature']}): too little signal to say (index {row['index']:.2f} "
                f"[{row['low']:.2f}, {row['high']:.2f}]{known})")
    p = "p < 0.001" if row["p_corrected"] < 0.001 else f"p = {row['p_corrected']:.3f}"
    few = f" (so few scenes allow {row['smallest_p']:.3f} at least)" if row["smallest_p"] > 0.001 else ""
    return (f"{row['roi']} ({row['feature']}): completion index {row['index']:.2f} "
            f"[{row['low']:.2f}, {row['high']:.2f}], {p} corrected over ROIs{few}{known}{hidden}")


def told(near, rows):
    """The rows of closeness to print: of the feature that each ROI is judged by in the index, and of pictures."""
    judged = {(row["roi"], row["feature"]) for row in rows if row["primary"]}
    return [row for row in near if row["feature"] == "reconstruction"
            or row["source"] == "occluded viewing" and (row["roi"], row["feature"]) in judged]


def closeness_sentence(row):
    """One line for a reader."""
    parts = [f"{name} by {row[f'over_{key}']:+.2f} [{row[f'over_{key}_low']:+.2f}, {row[f'over_{key}_high']:+.2f}]"
             for key, name in (("occluder", "the occluder"), ("context", "the context's guess"),
                               ("others", "other images"))
             if not np.isnan(row[f"over_{key}"])]
    what = f"{row['roi']} ({row['feature']})" if row["roi"] != "none" else f"without a brain ({row['source']})"
    return f"closeness, {what}: r with the truth {row['truth']:.2f}, above that with {', '.join(parts)}"
