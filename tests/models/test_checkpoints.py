"""Checkpoints as the hub has them: in its folders, its cache and behind its API, on loopback."""
import http.server
import json
import os
import shutil
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from utils import cli
from utils.errors import Problem
from utils.models import checkpoints, loading

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
HEAD = "f" * 40  # what main points at in these hubs


class Hub:
    """A hub on loopback that serves folders {repository: folder} at one commit each, and logs every request."""

    def __init__(self, repositories, commits, refused=None):
        log, refused = [], refused or {}

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                log.append(f"{self.command} {self.path.split('?')[0]}")
                self._answer(*self._found())

            do_HEAD = do_POST = do_GET

            def _found(self):
                parts = self.path.split("?")[0].strip("/").split("/")
                api = parts[:2] == ["api", "models"]
                owner_name, rest = "/".join(parts[2:4] if api else parts[:2]), parts[4:] if api else parts[2:]
                if owner_name in refused:
                    return (refused[owner_name], b"{}",
                            {"X-Error-Code": "GatedRepo"} if refused[owner_name] == 403 else {})
                if owner_name not in repositories:
                    return 401, b"{}", {"X-Error-Code": "RepoNotFound"}
                commit, folder = commits[owner_name], repositories[owner_name]
                if rest and rest[0] in ("revision", "resolve") and rest[1] not in (commit, "main"):
                    return 404, b"{}", {"X-Error-Code": "RevisionNotFound"}
                if api:
                    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
                    body = {"id": owner_name, "sha": commit, "private": False,
                            "siblings": [{"rfilename": name} for name in files]}
                    return 200, json.dumps(body).encode(), {"Content-Type": "application/json"}
                path = folder.joinpath(*rest[2:])
                if not path.is_file():
                    return 404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit}
                return 200, path.read_bytes(), {"X-Repo-Commit": commit, "ETag": f'"{path.name}-{commit[:8]}"'}

            def _answer(self, status, body, headers):
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            def log_message(self, *_):
                pass

        self.log = log
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """No model, identity or revision of another test."""
    monkeypatch.setenv(checkpoints.REVISIONS, "")
    loading.forget(), checkpoints.identity.cache_clear()
    yield
    loading.forget(), checkpoints.identity.cache_clear()


def copied(role, folder):
    """A role's small checkpoint in `folder`/role, without links."""
    shutil.copytree(checkpoints.TINY / role, folder / role)
    return folder / role


def as_bin(folder, change=None):
    """Turn model.safetensors into pytorch_model.bin, as checkpoints of 2022 and 2023 have it, position_ids and all."""
    weights = next(path for path in (folder / "model.safetensors", folder / "diffusion_pytorch_model.safetensors")
                   if path.exists())
    state = load_file(weights)
    if weights.name == "model.safetensors":
        state["text_decoder.bert.embeddings.position_ids"] = torch.arange(32)[None]
    torch.save({name: tensor + (change or 0) if tensor.is_floating_point() else tensor
                for name, tensor in state.items()},
               folder / weights.name.replace(
                   "model.safetensors", "pytorch_model.bin" if weights.name == "model.safetensors" else "model.bin"))
    weights.unlink()


def without(folder, start):
    """Take from a checkpoint the weights whose names start with `start`; returns how many there were."""
    path = next(folder.glob("*model.safetensors"))
    state = load_file(path)
    kept = {name: tensor for name, tensor in state.items() if not name.startswith(start)}
    save_file(kept, path, {"format": "pt"})
    return len(state) - len(kept)


def load(folder, monkeypatch, role):
    monkeypatch.setenv("NSD_MODELS", str(folder))
    loading.forget(), checkpoints.identity.cache_clear()
    return {"blip": lambda: loading.blip(CPU, torch.float32)[0], "clip": lambda: loading.clip(CPU)[0],
            "dpt": lambda: loading.dpt(CPU, torch.float32)[0],
            **{part: lambda part=part: getattr(loading.stable_diffusion(CPU, torch.float32), part) for part in
               ("vae", "unet", "text_encoder")}}[role]()


# .bin where there is nothing else


def test_a_folder_with_nothing_but_bin_gives_the_same_weights(tmp_path, monkeypatch):
    as_bin(copied("blip", tmp_path))
    as_bin(copied("sd", tmp_path) / "vae")
    expected = load_file(checkpoints.TINY / "blip/model.safetensors")
    found = load(tmp_path, monkeypatch, "blip").state_dict()
    assert all(torch.equal(found[name], tensor.float()) for name, tensor in expected.items())
    pixels = torch.zeros(1, 3, 64, 64)
    moments = load(tmp_path, monkeypatch, "vae").encode(pixels).latent_dist.mean
    monkeypatch.setenv("NSD_MODELS", "tiny")
    loading.forget()
    assert torch.equal(moments, loading.stable_diffusion(CPU, torch.float32).vae.encode(pixels).latent_dist.mean)


def test_safetensors_are_taken_where_both_are_there(tmp_path, monkeypatch):
    folder = copied("blip", tmp_path)
    (folder / "pytorch_model.bin").write_bytes(b"not to be read")
    identity = checkpoints.identity.__wrapped__
    load(tmp_path, monkeypatch, "blip")
    before = identity("blip")
    (folder / "pytorch_model.bin").unlink()
    assert identity("blip") == before


def test_two_folders_of_bin_have_two_identities(tmp_path, monkeypatch):
    found = set()
    for number in range(2):
        as_bin(copied("blip", tmp_path / str(number)), change=number)
        monkeypatch.setenv("NSD_MODELS", str(tmp_path / str(number)))
        checkpoints.identity.cache_clear()
        found.add(checkpoints.identity("blip")["revision"])
    assert len(found) == 2


def test_the_identity_covers_the_bin_of_a_component_beside_safetensors_of_others(tmp_path, monkeypatch):
    monkeypatch.setenv("NSD_MODELS", str(tmp_path))
    as_bin(copied("sd", tmp_path) / "vae")
    first = checkpoints.identity.__wrapped__("sd")
    path = tmp_path / "sd/vae/diffusion_pytorch_model.bin"
    path.write_bytes(path.read_bytes() + b" ")
    assert checkpoints.identity.__wrapped__("sd") != first


def test_a_pickle_is_refused_by_a_torch_that_cannot_read_it_safely(tmp_path, monkeypatch):
    as_bin(copied("blip", tmp_path))
    monkeypatch.setattr(torch, "__version__", torch.torch_version.TorchVersion("2.9.1"))
    with pytest.raises(Problem,
                       match="pytorch_model.bin is pickled, and torch 2.9.1 .*CVE-2026-24747.*install torch 2.10"):
        load(tmp_path, monkeypatch, "blip")


# nothing random in the place of weights

LACKING = [("blip", "blip", "text_decoder.bert.encoder.layer.1.output.dense"),
           ("clip", "clip", "vision_model.encoder.layers.0.mlp"),
           ("dpt", "dpt", "head."), ("dpt", "dpt", "neck.fusion_stage.layers.1.residual_layer1."),
           ("sd/text_encoder", "text_encoder", "text_model.final_layer_norm"), ("sd/vae", "vae", "decoder.conv_in"),
           ("sd/unet", "unet", "mid_block.resnets.0")]


@pytest.mark.parametrize("folder, role, start", LACKING)
def test_weights_that_lack_are_named(tmp_path, monkeypatch, folder, role, start):
    copied(folder.split("/")[0], tmp_path)
    count = without(tmp_path / folder, start)
    assert count
    with pytest.raises(Problem,
                       match=rf"lacks {count} weights of \w+: .*{start.rstrip('.').split('.')[-1]}.*random numbers"):
        load(tmp_path, monkeypatch, role)


def test_a_depth_model_may_lack_the_layer_that_published_ones_lack(tmp_path, monkeypatch):
    count = without(copied("dpt", tmp_path), "neck.fusion_stage.layers.0.residual_layer1.")
    assert count == 4
    network = load(tmp_path, monkeypatch, "dpt")
    pixels = torch.linspace(-1, 1, 3 * network.config.image_size ** 2).view(1, 3, network.config.image_size, -1)
    depth = network(pixels).predicted_depth
    for parameter in network.neck.fusion_stage.layers[0].residual_layer1.parameters():
        parameter.fill_(float("nan"))
    assert torch.equal(network(pixels).predicted_depth, depth)  # nothing reads it


# the hub


@pytest.fixture
def at(monkeypatch, tmp_path):
    """at(hub, offline) points this process at a hub on loopback
    (None: an address where nobody answers) and an empty cache."""
    def point(hub, offline=False):
        url = hub.url if hub else "http://127.0.0.1:9"
        monkeypatch.setenv("NSD_MODELS", "hub")
        for name, value in (("ENDPOINT", url),
                            ("HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}"),
                            ("HF_HUB_CACHE", str(tmp_path / "hub")), ("HF_HUB_OFFLINE", offline),
                            ("HF_HUB_DISABLE_XET", True)):
            monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
        monkeypatch.setenv(checkpoints.REVISIONS, "")
        loading.forget(), checkpoints.identity.cache_clear(), checkpoints._listing.cache_clear()
    yield point
    checkpoints._listing.cache_clear()


def blip():
    """Loads the captioner; returns the revision that would be recorded."""
    loading.blip(CPU, torch.float32)
    return checkpoints.identity("blip")["revision"]


def test_a_hub_without_safetensors_is_asked_for_bin_and_nothing_else(tmp_path, at, monkeypatch):
    """The log is everything that any library asked for: no conversion service, no pull request, no second revision."""
    monkeypatch.delenv("DISABLE_SAFETENSORS_CONVERSION", raising=False)
    repository, commit = checkpoints.HUB["blip"]
    as_bin(copied("blip", tmp_path))
    (tmp_path / "blip/tf_model.h5").write_bytes(b"large")
    with Hub({repository: tmp_path / "blip"}, {repository: commit}) as hub:
        at(hub)
        assert blip() == commit
        for thread in threading.enumerate():
            assert "conversion" not in thread.name
        asked = {line.split(" ", 1)[1] for line in hub.log}
        wanted = {f"/{repository}/resolve/{commit}/{path.name}" for path in (tmp_path / "blip").iterdir()
                  if path.name not in ("README.md", "tf_model.h5")}
        # huggingface_hub's own, for its user agent; at times, and about no repository.
        asked -= {"/api/agent-harnesses"}
        assert asked == wanted | {f"/api/models/{repository}/revision/{commit}"}
        hub.log.clear()
        at(hub, offline=True)
        assert blip() == commit and not hub.log


def test_another_revision_is_resolved_and_the_commit_recorded(tmp_path, at):
    repository = checkpoints.HUB["blip"][0]
    copied("blip", tmp_path)
    with Hub({repository: tmp_path / "blip", "some/mirror": tmp_path / "blip"},
             {repository: HEAD, "some/mirror": "e" * 40}) as hub:
        at(hub)
        with pytest.raises(Problem, match="has no revision 82a3.*--revision blip=main"):
            blip()
        checkpoints.use_revisions(["blip=main"])
        assert blip() == HEAD
        assert f"GET /{repository}/resolve/{HEAD}/model.safetensors" in hub.log  # what is recorded is what was loaded
        loading.forget()
        checkpoints.use_revisions(["blip=some/mirror@main"])
        assert blip() == "e" * 40 and checkpoints.identity("blip")["model"] == "some/mirror"


@pytest.mark.parametrize("refused, revision, says", [
    ({}, None, "the hub has no repository Salesforce/blip-image-captioning-base, of role blip: it was retired"),
    ({"Salesforce/blip-image-captioning-base": 403}, None, "is gated"),
    ({}, "sd_depth=stabilityai/stable-diffusion-2-depth@main", "sd2-community/stable-diffusion-2-depth replaces it"),
])
def test_a_repository_that_is_not_to_be_had_is_one_line_with_what_replaces_it(at, refused, revision, says, capsys):
    with Hub({}, {}, refused) as hub:
        at(hub)
        checkpoints.use_revisions([revision] if revision else [])
        with pytest.raises(SystemExit):
            cli.run(lambda: loading.stable_diffusion(CPU, torch.float32, "sd_depth").vae if revision else blip())
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1 and says in said and "--revision" in said


def hub_cache(home, repository, commit, folder, components):
    """What component loads leave in a cache: blobs, the files of `components` in one snapshot, and refs/main.
    No root config."""
    base = home / "hub" / f"models--{repository.replace('/', '--')}"
    (base / "refs").mkdir(parents=True)
    (base / "refs/main").write_text(commit)
    (base / "blobs").mkdir()
    for component in components:
        for path in sorted((folder / component).iterdir()):
            blob = base / "blobs" / f"{component}-{path.name}"
            shutil.copyfile(path, blob)
            link = base / "snapshots" / commit / component / path.name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(os.path.relpath(blob, link.parent))


COMPONENTS = ("vae", "unet", "text_encoder", "tokenizer", "scheduler")


def stable():
    """Loads every component; returns the revision that would be recorded."""
    model = loading.stable_diffusion(CPU, torch.float32)
    model.vae, model.unet, model.text_encoder, model.tokenizer, model.scheduler_config, model.latent_side
    return checkpoints.identity("sd")["revision"]


def test_offline_stable_diffusion_loads_from_a_cache_of_component_files(tmp_path, at):
    repository, commit = checkpoints.HUB["sd"]
    hub_cache(tmp_path, repository, commit, checkpoints.TINY / "sd", COMPONENTS)
    with Hub({}, {}) as hub:
        at(hub, offline=True)
        assert stable() == commit and not hub.log
    at(None)  # a node without network whose user forgot to say so
    assert stable() == commit


def test_offline_with_another_commit_in_the_cache_says_which(tmp_path, at):
    repository, commit = checkpoints.HUB["sd"]
    hub_cache(tmp_path, repository, HEAD, checkpoints.TINY / "sd", COMPONENTS)
    at(None, offline=True)
    with pytest.raises(Problem, match=f"{commit} is not in.*--revision sd={HEAD}"):
        stable()
    for revision in (HEAD, "main"):
        loading.forget()
        checkpoints.use_revisions([f"sd={revision}"])
        assert stable() == HEAD


def test_every_revision_is_pinned_and_stands_in_the_docs():
    rows = {row.split("|")[1].strip(" `"): row for row in (ROOT / "docs/models.md").read_text().splitlines()
            if row.startswith("| `") and row.count("|") == 6}
    assert rows.keys() == checkpoints.HUB.keys() | checkpoints.ELSEWHERE.keys()
    for role, (repository, revision) in checkpoints.HUB.items():
        assert checkpoints.COMMIT.fullmatch(revision) and repository in rows[role] and revision in rows[role]
    for role, where in checkpoints.ELSEWHERE.items():
        assert where in rows[role]


def test_a_revision_of_no_role_is_refused(monkeypatch):
    for word in ("nonsense=main", "sd", "swav=main"):
        with pytest.raises(Problem, match="names no revision of a role"):
            checkpoints.use_revisions([word])


def test_the_pipeline_hands_revisions_and_prompt_on(command_line):
    found = command_line("run_pipeline.py", "--subject", "subj01", "--methods", "text", "--dry_run", "--prompt",
                         "published", "--revision", "sd=main", "blip=a/b@c").stdout
    commands = {line.split("python ")[1].split()[0]: line for line in found.splitlines()}
    for name in ("img2feat_sd1_parallel.py", "img2feat_blip.py", "decode_captions.py", "diffusion_decoding.py",
                 "evaluate.py"):
        assert "--revision sd=main blip=a/b@c" in commands[name]
        assert ("--prompt published" in commands[name]) == (name in ("img2feat_blip.py", "decode_captions.py"))
    assert "--revision" not in commands["ridge.py"]
