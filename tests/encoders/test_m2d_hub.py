"""What save_pretrained and push_to_hub write is the same encoder when from_pretrained reads it."""

import copy
import json
import pickle
import shutil

import pytest
import torch
from huggingface_hub import HfApi, hub_mixin
from safetensors.torch import load_file, save_file

from m2d_bench.encoders import checkpoint, m2d, tensor_file, zoo
from m2d_bench.encoders.m2d import M2DEncoder
from m2d_bench.errors import CheckpointError, StorageError, UsageError
from tests.conftest import GOLDEN, small_encoder
from tests.encoders.test_m2d import noise


@pytest.fixture
def saved(tmp_path):
    small_encoder().save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


@pytest.mark.parametrize(
    "encoder",
    [
        *(M2DEncoder.from_checkpoint(checkpoint.read(folder)) for folder in GOLDEN),
        small_encoder(features="flat", norm_stats=(-6.5, 3.25)),
        small_encoder((16, 4), 200, sample_rate=32000, encoding="one_pass", dur_frames=300),
    ],
    ids=[*(folder.name for folder in GOLDEN), "flat", "one-pass-32k"],
)
def test_a_saved_encoder_is_read_as_what_it_was(encoder, tmp_path):
    encoder.save_pretrained(tmp_path / "mine")
    assert {path.name for path in (tmp_path / "mine").iterdir()} == {"README.md", "config.json", "model.safetensors"}
    waveform = noise(2, 40000)
    for again in (M2DEncoder.from_pretrained(tmp_path / "mine"), zoo.load_m2d(tmp_path / "mine", device="cpu")):
        again.precision = "fp32"
        assert (again.digest, again.config) == (encoder.digest, encoder.config)
        assert not again.training
        assert not any(parameter.requires_grad for parameter in again.parameters())
        assert torch.equal(again.scene_embeddings(waveform), encoder.scene_embeddings(waveform))


def test_what_is_saved_is_the_encoder_as_it_is_now(saved, caplog):
    encoder = M2DEncoder.from_pretrained(saved, features="flat")
    assert encoder.config.features == "flat"
    small_encoder().save_pretrained(saved)
    assert not caplog.records
    encoder.vit.cls_token.data += 1
    encoder.save_pretrained(saved)
    assert "README.md: stays, though it names another encoder" in caplog.text
    assert M2DEncoder.from_pretrained(saved).digest == encoder.digest
    with pytest.raises(UsageError, match="Did you mean features"):
        M2DEncoder.from_pretrained(saved, feature="flat")


def test_copies_are_the_same_encoder():
    encoder = small_encoder()
    for again in (copy.deepcopy(encoder), pickle.loads(pickle.dumps(encoder))):
        assert (again.digest, again.config) == (encoder.digest, encoder.config)


def test_what_is_pushed_is_read_from_the_repository(tmp_path, monkeypatch, capsys):
    asked = []

    def create(self, *, repo_id, private, exist_ok):
        asked.append((repo_id, private, self.token))
        return type("Created", (), {"repo_id": repo_id})

    def upload(self, *, repo_id, folder_path, commit_message, **_):
        shutil.copytree(folder_path, tmp_path / repo_id)
        return f"https://huggingface.co/{repo_id}/commit/1"

    def download(repo_id, filename, *, revision, **_):
        asked.append((repo_id, filename, revision))
        return str(tmp_path / repo_id / filename)

    monkeypatch.setattr(HfApi, "create_repo", create)
    monkeypatch.setattr(HfApi, "upload_folder", upload)
    for module in (hub_mixin, m2d):
        monkeypatch.setattr(module, "hf_hub_download", download)
    encoder, facts = small_encoder(), {"scores": "| esc50 | 91.0 ± 0.3 |", "commands": "m2d-bench linear --tasks esc50"}
    assert "me/mine/commit/1" in encoder.push_to_hub("me/mine", token="t", private=True, model_card_kwargs=facts)
    assert M2DEncoder.from_pretrained("me/mine", revision="v1").digest == encoder.digest
    assert asked == [("me/mine", True, "t"), ("me/mine", "config.json", "v1"), ("me/mine", "model.safetensors", "v1")]
    card = (tmp_path / "me/mine/README.md").read_text(encoding="utf-8")
    for part in ("library_name: m2d-bench", "# small", encoder.digest, "every\n160 ms", *facts.values()):
        assert part in card
    assert not capsys.readouterr().out


def test_a_card_without_scores_has_no_empty_headings(saved):
    card = (saved / "README.md").read_text(encoding="utf-8")
    assert "# small" in card
    assert "Scores" not in card
    assert "Repeated" not in card


def _other_setting(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "sample_rate": 32000, "features": "flat"}))


def _other_weights(folder):
    state = load_file(folder / "model.safetensors")
    metadata = tensor_file.read_safetensors(folder / "model.safetensors")[1]
    save_file({**state, "cls_token": state["cls_token"] + 1}, folder / "model.safetensors", metadata)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_other_setting, "config.json contradicts model.safetensors.*: sample_rate, features. Remove config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "cannot be loaded.*save_pretrained"),
        (lambda folder: (folder / "config.json").write_text("[]"), "cannot be loaded.*save_pretrained"),
        (lambda folder: (folder / "config.json").write_bytes(b"\xff\xfe\xfa"), "cannot be loaded.*save_pretrained"),
        (_other_weights, "damaged, its checksum does not match"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"none"), "not a safetensors file"),
        (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors: no such file"),
    ],
)
def test_damaged_folders_are_refused(saved, damage, message):
    damage(saved)
    with pytest.raises(CheckpointError, match=message):
        M2DEncoder.from_pretrained(saved)


@pytest.mark.parametrize("name", ["nobody/has-this", "random:m2d_tiny", "no:name", "/no/such/folder", "a/b/c"])
def test_a_repository_that_cannot_be_had_says_what_to_do(name, tmp_path):
    with pytest.raises(CheckpointError, match=rf"{name}: cannot be loaded: .*hf download.*load_encoder"):
        M2DEncoder.from_pretrained(name, local_files_only=True, cache_dir=tmp_path)


def test_without_config_json_the_weights_tell(saved):
    (saved / "config.json").unlink()
    assert M2DEncoder.from_pretrained(saved).digest == small_encoder().digest


@pytest.mark.parametrize("name", ["me/mine", "no:name"])
def test_what_cannot_be_uploaded_says_what_to_do(name, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(StorageError, match=rf"{name}: cannot be uploaded: .*save_pretrained\(FOLDER\)"):
        small_encoder().push_to_hub(name)
    with pytest.raises(TypeError, match="privat"):
        small_encoder().push_to_hub("me/mine", privat=True)


@pytest.mark.parametrize("folder", ["a file", "a file/below"])
def test_a_folder_that_cannot_be_made_is_named(folder, tmp_path):
    (tmp_path / "a file").touch()
    with pytest.raises(UsageError, match=f"{folder}: cannot be made"):
        small_encoder().save_pretrained(tmp_path / folder)
