"""A feature of one's own, by docs/architecture.md: extracted, resumed, and gathered for ridge."""
import h5py
import numpy as np
import torch

from tests import tiny_nsd
from utils import cli, layout
from utils.features import extraction
from utils.storage import feature_shards


def test_a_feature_that_takes_no_network_is_extracted_once_and_names_no_model(tmp_path, monkeypatch, capsys):
    pictures = tiny_nsd.build_stimuli(tmp_path / "nsd", count=300)
    monkeypatch.setenv("NSD_ROOT", str(tmp_path / "nsd"))
    calls = []

    def mean_colour(batch, ids):
        calls.append(len(ids))
        return batch.mean((1, 2)).astype(np.float32)

    def run(*flags):
        parser = cli.parser("", "")
        extraction.add_arguments(parser)
        args = cli.parse(parser, ["--workdir", str(tmp_path), *flags])
        stimuli, attributes = extraction.open_stimuli(args)
        extraction.extract(args, stimuli, attributes, None, "mean_colour", torch.float32, mean_colour, batch=100)
        return capsys.readouterr().out

    assert "256 computed, 0 already there, (3,) each" in run("--imgidx", "0", "256")
    assert "44 computed, 256 already there" in run()
    assert sum(calls) == 300 and max(calls) == 100
    shards = feature_shards.Shards(layout.features(tmp_path, "mean_colour"))
    np.testing.assert_allclose(shards.read(np.arange(300), ""), pictures.mean((1, 2)), rtol=1e-6)
    assert shards.attributes()["feature"] == "mean_colour" and "model" not in shards.attributes()
    with h5py.File(sorted(shards.folder.glob("*.h5"))[0]) as file:
        assert file.attrs["stimuli"] == "nsd"
