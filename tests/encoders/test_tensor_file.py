"""What a file holds is checked before it is believed: sums, types, values, sizes; nothing in it is run."""

import datetime
import io
import itertools
import json
import os
import pathlib
import re
import zipfile
from dataclasses import asdict

import numpy as np
import pytest
import safetensors.torch
import torch
from torch.optim.swa_utils import AveragedModel

from m2d_bench.encoders import checkpoint
from m2d_bench.encoders.checkpoint import Checkpoint, Labels
from m2d_bench.encoders.classifier import build
from m2d_bench.errors import CheckpointError
from tests.conftest import small_encoder

ENCODER = small_encoder()
STATE = {**ENCODER.vit.state_dict(), "norm_stats": torch.tensor([-7.0, 4.0])}
PATCHES, QKV, NORM = "patch_embed.proj.weight", "blocks.1.attn.qkv.weight", "norm.weight"


def write(folder, content, file="checkpoint-1.pth", **how):
    path = folder / "80x208p16x16" / file
    path.parent.mkdir(exist_ok=True)
    torch.save(content, path, **how)
    return path


def refused(path):
    """The message, which never repeats torch's advice and holds nothing that a terminal would obey."""
    with pytest.raises(CheckpointError) as error:
        checkpoint.read(path)
    message = str(error.value)
    assert message.startswith(str(path))
    assert message.isprintable()
    assert not any(word in message for word in ("weights_only", "safe_globals", "can still be loaded"))
    return message


def same(found):
    return all(torch.equal(tensor, STATE[key]) for key, tensor in found.encoder.items())


TYPES = {
    "without values": {QKV: STATE[QKV].to("meta")},
    "quantised": {QKV: torch.quantize_per_tensor(STATE[QKV], 0.1, 0, torch.qint8)},
    "sparse": {QKV: STATE[QKV].to_sparse()},
    "torch.complex64": {QKV: STATE[QKV].to(torch.complex64)},
    "torch.bool": {"cls_token": torch.ones(1, 1, 128, dtype=torch.bool)},
    "torch.int8": {QKV: STATE[QKV].to(torch.int8)},
    "claim": {"pos_embed": torch.zeros(1).expand(1, 66, 1 << 34)},
    r"of \d+ stored": {"decoder_embed.weight": torch.zeros(1).expand(1 << 34, 64)},
    r"infinity: norm_stats": {"norm_stats": torch.tensor([float("nan"), 4.0])},
    r"infinity: blocks\.0": {"blocks.0.mlp.fc1.bias": torch.full((512,), 1e300, dtype=torch.float64)},
    "infinity: mask_token": {"mask_token": torch.full((1, 1, 64), float("inf"))},
    r"both finite, got \(-7": {"norm_stats": torch.tensor([-7.0, -4.0])},
    "one channel": {PATCHES: torch.zeros(128, 3, 16, 16)},
    r"\[0, 1, 16, 16\]": {PATCHES: torch.zeros(0, 1, 16, 16)},
    r"\[128, 1, 96, 16\]": {PATCHES: torch.zeros(128, 1, 96, 16)},
    r"\[128, 1, 16, 0\]": {PATCHES: torch.zeros(128, 1, 16, 0)},
    "class tokens": {"cls_token": torch.zeros(1, 10**15, 0)},
    r"norm\.weight \[0\] instead of \[128\]": {NORM: torch.zeros(0)},
    r"unexpected: blocks\.99999999\.norm1\.bias": {"blocks.99999999.norm1.bias": torch.zeros(128)},
    r"unexpected: blocks\.-1\.x": {"blocks.-1.x": torch.zeros(1)},
    r"'\\x1b\[31mred'": {"\x1b[31mred": torch.zeros(1)},
    "keys twice": {"_orig_mod.norm.weight": STATE[NORM]},
    r"head\.bias \[4\] instead of \[5\]": {
        "head.mlp.mlp.0.weight": torch.zeros(5, 128),
        "head.mlp.mlp.0.bias": torch.zeros(4),
    },
}


@pytest.mark.parametrize("match", TYPES)
def test_odd_tensors_are_refused_by_name(tmp_path, match):
    with pytest.raises(CheckpointError, match=match):
        checkpoint.read(write(tmp_path, {"model": {**STATE, **TYPES[match]}}))
    refused(tmp_path / "80x208p16x16" / "checkpoint-1.pth")


def test_an_encoder_without_blocks_is_refused(tmp_path):
    assert "missing: blocks.0." in refused(write(tmp_path, {k: v for k, v in STATE.items() if "blocks" not in k}))


WRAPPED = {
    "lightning": {"state_dict": {f"model.encoder.{k}": v for k, v in STATE.items()}, "epoch": 3},
    "optimiser beside": {
        "model_state_dict": STATE,
        "optimizer_state_dict": {"state": {0: {"step": torch.tensor(1.0)}}},
    },
    "mean of weights beside": {"model": STATE, "model_ema": STATE},
    "key of its own": {"network": STATE},
    "deepspeed": {"module": {f"_forward_module.{k}": v for k, v in STATE.items()}, "ds_version": "0.16"},
    "mean of weights": {f"module.{k}": v for k, v in STATE.items()} | {"n_averaged": torch.tensor(3)},
    "two levels": {"checkpoint": {"state_dict": STATE}},
    "compiled": {f"_orig_mod.{k}": v for k, v in STATE.items()},
    "compiled parts": {
        k.replace("mlp.", "_orig_mod.mlp.").replace("proj", "_orig_mod.proj"): v for k, v in STATE.items()
    },
    "parallel": {f"module._orig_mod.{k.replace('attn.', 'module.attn.')}": v for k, v in STATE.items()},
    "half precision": {k: v.double() for k, v in STATE.items()},
    "numpy": {
        "model": {**STATE, "norm_stats": [np.float64(-7), np.float32(4)]},
        "best": np.float64(0.5),
        "n": np.int64(3),
    },
    "array": {"model": {**STATE, "norm_stats": np.array([-7.0, 4.0])}, "confusion": np.zeros((2, 2), int)},
    "objects": {"model": STATE, "out": pathlib.PurePosixPath("x"), "at": datetime.datetime(2024, 1, 1)},
    "clap": {**{f"backbone.{k}": v for k, v in STATE.items()}, "text_proj.weight": torch.ones(4, 4)},
    "clap's text": {**STATE, "text_encoder.embeddings.position_ids": torch.arange(5), "logit_scale": torch.tensor(1.0)},
}


@pytest.mark.parametrize("tool", WRAPPED)
@pytest.mark.parametrize("file", ["last.ckpt", "last.pt"])
def test_what_training_tools_write_is_read(tmp_path, tool, file):
    found = checkpoint.read(write(tmp_path, WRAPPED[tool], file))
    assert same(found)
    assert found.config.norm_stats == (-7.0, 4.0)
    assert set(found.extras) <= {"logit_scale"}


OTHER = {key: tensor + 1 for key, tensor in STATE.items()}


def under(prefix, state=STATE):
    return {f"{prefix}{key}": tensor for key, tensor in state.items()}


SEVERAL = {
    "timm": ({"state_dict": under("module."), "state_dict_ema": OTHER, "arch": "vit"}, "state_dict is read"),
    "mean under its own name": ({"model": STATE, "ema_state_dict": under("module.", OTHER)}, "model is read"),
    "dino": (
        {
            "student": {**under("module.backbone.", OTHER), "module.head.last_layer.weight_g": torch.ones(2, 1)},
            "teacher": {**under("backbone."), "head.mlp.0.weight": torch.ones(2, 2)},
        },
        "teacher.backbone is read",
    ),
    "dino of lightning": (
        {"state_dict": {**under("student.", OTHER), **under("teacher."), "center": torch.ones(1, 9)}},
        "state_dict.teacher is read",
    ),
    "lightning and swa": (
        {"state_dict": {**under("model."), **under("ema.module.", OTHER), "ema.n_averaged": torch.tensor(3)}},
        "state_dict.model is read",
    ),
    "ema-pytorch": (
        {**under("online_model.", OTHER), **under("ema_model.module."), "initted": torch.tensor(True)},
        "ema_model is read",
    ),
    "a teacher inside": ({**STATE, **under("teacher.", OTHER)}, "the outermost is read"),
}


@pytest.mark.parametrize("tool", SEVERAL)
def test_of_several_encoders_the_one_is_read_that_their_tool_evaluates_and_said(tmp_path, caplog, tool):
    content, words = SEVERAL[tool]
    found = checkpoint.read(write(tmp_path, content))
    assert same(found)
    assert found.config.norm_stats == (-7.0, 4.0)
    assert words in caplog.text


@pytest.mark.parametrize(
    ("content", "names"),
    [
        ({"student": STATE, "other": STATE}, "student, other"),
        ({**under("a.module."), **under("b.")}, "a, b"),
        ({"teacher": {**under("one."), **under("two.")}, "net": STATE}, "teacher.one, teacher.two, net"),
    ],
)
def test_several_encoders_of_which_none_is_the_one_are_named(tmp_path, content, names):
    assert f"several ({names})" in refused(write(tmp_path, content))


WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "module", "n_averaged")
"""Names that torch.compile, FSDP and DDP give to what they wrap; AveragedModel adds a tensor of its own."""


@pytest.mark.parametrize("order", list(itertools.permutations(WRAPPERS, 3)), ids="-".join)
def test_torchs_wrappers_are_read_in_any_order(tmp_path, order):
    model = small_encoder().vit
    model.blocks[1] = torch.nn.ModuleDict({"_checkpoint_wrapped_module": model.blocks[1]})
    for name in order:
        model = AveragedModel(model) if name == "n_averaged" else torch.nn.ModuleDict({name: model})
    assert same(checkpoint.read(write(tmp_path, model.state_dict(), "pytorch_model.bin")))


def test_what_hydra_configured_is_passed_over(tmp_path):
    settings = pytest.importorskip("omegaconf").OmegaConf.create({"lr": 1.0, "sizes": [1, "x", {"b": None}]})
    content = {"state_dict": under("model."), "hyper_parameters": settings}
    assert same(checkpoint.read(write(tmp_path, content, "last.ckpt")))


def test_hidden_twins_and_other_files_of_a_folder_do_not_count(tmp_path):
    folder = write(tmp_path, STATE).parent
    beside = ("optimizer.bin", "scheduler.pt", "rng_state_0.pth", "training_args.bin", "sampler.bin", "scaler.pt")
    for name in ("._checkpoint-1.pth", "log.txt", "archive.zip", *beside):
        (folder / name).write_bytes(b"\0\5\26\7")
    (folder / "events.pt").mkdir()
    assert same(checkpoint.read(folder))


class Attack:
    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call[0], self.call[1:]


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    ("name", "call"),
    [("posix.system", (os.system, "touch attacked")), ("numpy.load", (np.load, "x.npy")), ("exec", (exec, "1"))],
)
def test_what_a_pickle_asks_for_is_named_and_not_run(tmp_path, monkeypatch, name, call, legacy):
    monkeypatch.chdir(tmp_path)
    message = refused(write(tmp_path, {**STATE, "x": Attack(*call)}, _use_new_zipfile_serialization=not legacy))
    assert re.search(rf"Python object (builtins\.)?{name}", message.replace("nt.system", "posix.system"))
    assert not (tmp_path / "attacked").exists()


def test_numpy_texts_are_not_read_for_they_state_their_own_size(tmp_path):
    assert "numpy.dtypes.StrDType" in refused(write(tmp_path, {"model": STATE, "name": np.str_("x")}))


def test_files_of_other_kinds_say_how_they_begin(tmp_path):
    path = write(tmp_path, STATE)
    script = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Identity()), script)
    whole = path.read_bytes()
    for content, words in [
        (b"version https://git-lfs.github.com/spec/v1", "b'version https://"),
        (b"<!DOCTYPE html>", "<!DOCTYPE"),
        (b"", "EOFError"),
        (b"\0" * 600, "another format of torch"),
        (script.getvalue(), "TorchScript"),
        (whole[: len(whole) // 2], "not a whole zip"),
        (whole[:-3], "not a whole zip"),
    ]:
        path.write_bytes(content)
        assert words in refused(path)


@pytest.mark.parametrize("part", [0.1, 0.4, 0.6, 0.9])
def test_a_single_wrong_bit_is_noticed(tmp_path, part):
    path = write(tmp_path, STATE)
    content = bytearray(path.read_bytes())
    content[int(part * len(content))] ^= 1
    path.write_bytes(content)
    assert "checksum of " in refused(path)
    checkpoint.save(
        Checkpoint(config=ENCODER.config, encoder=ENCODER.vit.state_dict()), path := tmp_path / "c.safetensors"
    )
    content = bytearray(path.read_bytes())
    content[len(content) - int(part * 1_000_000)] ^= 1
    path.write_bytes(content)
    assert "checksum does not match" in refused(path)


def test_repacked_files_and_files_without_sums_are_read(tmp_path):
    path = write(tmp_path, STATE)
    with zipfile.ZipFile(io.BytesIO(path.read_bytes())) as old:
        records = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as new:
        for name, record in records.items():
            new.writestr(name, record)
    assert same(checkpoint.read(path))
    torch.serialization.set_crc32_options(False)
    try:
        write(tmp_path, STATE)
    finally:
        torch.serialization.set_crc32_options(True)
    assert same(checkpoint.read(path))


@pytest.mark.parametrize(
    ("words", "change"),
    [
        ("says 1000000000 blocks, it holds 2", {"vit": {**asdict(ENCODER.config.vit), "depth": 10**9}}),
        ("vit.width is 'wide'", {"vit": {**asdict(ENCODER.config.vit), "width": "wide"}}),
        ("do not tile", {"vit": {**asdict(ENCODER.config.vit), "patch_size": [0, 16]}}),
        ("sample_rate=8000", {"sample_rate": 8000}),
        ("both finite", {"norm_stats": [-7.0, float("inf")]}),
        ("unknown settings: colour", {"colour": "red"}),
        ("classes.0 is 1", {"labels": {"classes": [1], "multilabel": False, "clip_seconds": 1.0}}),
        ("clip_seconds is 1e+18", {"labels": {"classes": [], "multilabel": False, "clip_seconds": 1e18}}),
    ],
)
def test_a_configuration_inside_is_checked(tmp_path, words, change):
    path = tmp_path / "x.safetensors"
    metadata = {"m2d_bench": json.dumps({**asdict(ENCODER.config), **change})}
    safetensors.torch.save_file({k: v.contiguous() for k, v in STATE.items()}, path, metadata)
    assert words in refused(path)


def test_a_head_of_another_kind_leaves_the_encoder_usable(tmp_path):
    head = {"head.mlp.mlp.0.weight": torch.zeros(3, 128), "head.mlp.mlp.3.weight": torch.zeros(3, 3)}
    found = checkpoint.read(write(tmp_path, {**STATE, **head, "head.norm.weight": torch.ones(128)}))
    assert same(found)
    with pytest.raises(
        CheckpointError, match=r"Missing: bias, running_mean.*unknown: mlp\.mlp\.3\.weight, norm\.weight"
    ):
        build(found)
    checkpoint.save(found, path := tmp_path / "80x208p16x16" / "again.pth")
    assert checkpoint.read(path).head.keys() == found.head.keys()


def test_labels_check_themselves(tmp_path):
    labels = Labels(classes=("a", "b"), multilabel=False, clip_seconds=5)
    content = {"model": STATE, "labels": {**asdict(labels), "classes": ["a", "b"]}}
    assert checkpoint.read(write(tmp_path, content)).labels == labels
    content["labels"]["clip_seconds"] = float("nan")
    assert "clip_seconds is nan" in refused(write(tmp_path, content))
