"""A name gives the same encoder everywhere, or a message that says what to do."""

import hashlib
import io
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from m2d_bench.encoders import variants, zoo
from m2d_bench.errors import CheckpointError, StorageError, UsageError
from m2d_bench.registry import unknown
from m2d_bench.settings import Compute, Storage
from tests.conftest import random_checkpoint, small_encoder
from tests.file_server import Server, disk, full_disk, serving, with_flag, zip_of

CPU = Compute(device="cpu", precision="fp32")


def test_random_weights_are_the_same_every_time():
    name = "random:m2d_vit_tiny-80x208p16x16"
    first, second = zoo.load(name, compute=CPU), zoo.load(name, compute=CPU)
    assert first.digest == second.digest
    assert first.config.name == name
    assert not any(p.requires_grad for p in first.parameters())
    assert not first.training


@pytest.mark.parametrize(
    ("name", "size", "hop_ms", "rate"),
    [
        ("m2d_vit_tiny-80x608p16x16", 960, 160, 16000),
        ("m2d_s_vit_small-80x400p80x2p16k-x", 384, 20, 16000),
        ("m2d_vit_tiny-80x200p16x4p32k", 960, 40, 32000),
    ],
)
def test_names_say_the_configuration(name, size, hop_ms, rate):
    encoder = zoo.load(f"random:{name}", compute=CPU)
    assert (encoder.scene_embedding_size, encoder.hop_ms, encoder.sample_rate) == (size, hop_ms, rate)


def test_large_has_24_blocks_of_16_heads():
    config = zoo.checkpoint.parse_name("m2d_vit_large-80x608p16x16")
    assert (config.vit.width, config.vit.depth, config.vit.width // 64) == (1024, 24, 16)


def test_settings_can_be_changed_by_name():
    encoder = zoo.load("random:m2d_vit_tiny-80x208p16x16", compute=CPU, features="flat", norm_stats=(-7.0, 3.0))
    assert encoder.scene_embedding_size == 192
    assert encoder.config.norm_stats == (-7.0, 3.0)


def test_device_and_precision_can_be_said_in_short():
    assert zoo.load("random:m2d_vit_tiny-80x208p16x16", device="cpu", precision="bf16").precision == "bf16"


def test_paths_need_not_be_strings(tmp_path):
    path = tmp_path / "m2d_vit_tiny-80x208p16x16" / "checkpoint-1.pth"
    zoo.checkpoint.save(random_checkpoint(path.parent.name), path)
    assert zoo.load(path, compute=CPU).digest == zoo.load(str(path), compute=CPU).digest


def test_other_numbers_of_mel_bins_are_refused():
    with pytest.raises(UsageError, match="80 mel bins"):
        zoo.load("random:m2d_vit_tiny-64x208p16x16")


def test_misspelt_names_get_a_suggestion():
    with pytest.raises(UsageError, match=r"Unknown model 'm2d_tyni'\. Did you mean m2d_tiny"):
        zoo.load("m2d_tyni")
    for name, meant in {"Logmel": "logmel", "logmel@layer=2": "logmel", "hf": "hf:", "random": "random:"}.items():
        with pytest.raises(UsageError, match=rf"Unknown model '{name}'\. Did you mean {meant}[ ?]"):
            zoo.load(name)
    with pytest.raises(UsageError, match="released form"):
        zoo.load("random:nonsense")
    with pytest.raises(CheckpointError, match="no such file"):
        zoo.load("gone.pth")


def test_dozens_of_names_are_not_all_listed():
    assert str(unknown("task", "?", [f"task{n}" for n in range(50)])).endswith("task18, task19 … and 30 more.")


def test_unusable_device_and_precision_get_a_message():
    with pytest.raises(UsageError, match="'gpu' cannot be used"):
        zoo.load(compute=Compute(device="gpu"))
    with pytest.raises(UsageError, match="fp64"):
        Compute(precision="fp64")


@pytest.fixture
def server(monkeypatch):
    with serving() as address:
        monkeypatch.setattr(zoo, "_RELEASES", address)
        yield Server


NAME = "m2d_vit_base-80x200p16x4-230529"


def weights_file():
    weights = io.BytesIO()
    torch.save({"model": small_encoder((16, 4), 200).vit.state_dict()}, weights)
    return weights.getvalue()


def released_zip(name, note="words"):
    return zip_of({f"{name}/checkpoint-300.pth": weights_file(), f"{name}/README.txt": note})


def test_released_weights_are_downloaded_once(server, tmp_path):
    server.content = released_zip(NAME)
    storage = Storage(cache=tmp_path)
    first = zoo.load(NAME, compute=CPU, storage=storage)
    assert first.config.name == NAME
    assert first.hop_ms == 40
    assert zoo.load(NAME, compute=CPU, storage=storage).digest == first.digest
    assert len(server.ranges) == 1
    assert sorted(p.name for p in (tmp_path / "weights").iterdir()) == [NAME, f"{NAME}.lock"]


def test_a_broken_off_download_is_continued(server, tmp_path):
    server.content, server.limit = released_zip(NAME), 1000
    with pytest.raises(CheckpointError, match=r"run again|cannot be downloaded"):
        zoo.load(NAME, compute=CPU, storage=Storage(cache=tmp_path))
    server.limit = None
    assert zoo.load(NAME, compute=CPU, storage=Storage(cache=tmp_path)).config.name == NAME
    assert server.ranges == [None, "bytes=1000-"]


def test_an_archive_that_is_no_zip_is_removed_and_said(server, tmp_path):
    server.content = b"<html>not found</html>"
    with pytest.raises(CheckpointError, match="not a whole zip"):
        zoo.load(NAME, compute=CPU, storage=Storage(cache=tmp_path))
    assert not list((tmp_path / "weights").glob("*.zip*"))


def test_without_network_address_and_folder_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(zoo, "_RELEASES", "http://127.0.0.1:9")
    with pytest.raises(CheckpointError) as error:
        zoo.load(NAME, compute=CPU, storage=Storage(cache=tmp_path))
    assert f"http://127.0.0.1:9/v0.1.0/{NAME}.zip" in str(error.value)
    assert str(tmp_path / "weights" / NAME) in str(error.value)


def test_weights_put_into_the_folder_by_hand_are_found(tmp_path):
    folder = tmp_path / "weights" / NAME
    folder.mkdir(parents=True)
    torch.save(random_checkpoint(NAME.replace("base", "tiny")).encoder, folder / "checkpoint-300.pth")
    assert zoo.load(NAME, compute=CPU, storage=Storage(cache=tmp_path)).hop_ms == 40


def pth(content):
    file = io.BytesIO()
    torch.save(content, file)
    return zip_of({f"{NAME}/c.pth": file.getvalue()})


PLAIN = zip_of({f"{NAME}/c.pth": b"not read"})


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (with_flag(PLAIN, (6, 8), 1), "encrypted"),
        (with_flag(PLAIN, (8, 10), 99), "compression"),
        (PLAIN.replace(b"not read", b"not real"), "CRC"),
        (PLAIN[:-30], "not a whole zip"),
        (PLAIN, "cannot be loaded safely"),
        (with_flag(PLAIN, (22, 24), 3 << 30, size=4), "unpacks to 3221225472 bytes"),
        (pth({"model": {"fc.weight": torch.ones(2)}}), "one encoder of the M2D family is expected"),
        (pth({"epoch": 3}), "found epoch"),
        (pth([]), "found list"),
        (pth({"model": {**small_encoder((16, 4), 200).vit.state_dict(), "norm.bias": torch.ones(3)}}), "norm.bias [3]"),
        (zip_of({"README.txt": "", f"__MACOSX/{NAME}/c.pth": b"", f"{NAME}/._c.pth": b""}), "holds 0 .pth files"),
        (zip_of({f"{NAME}/a.pth": b"", f"{NAME}/b.pth": b""}), f"holds 2 .pth files ({NAME}/a.pth, {NAME}/b.pth)"),
    ],
)
def test_what_an_archive_must_not_be_is_said_and_the_next_try_starts_clean(server, tmp_path, content, words):
    server.content, storage = content, Storage(cache=tmp_path)
    with pytest.raises(CheckpointError) as error:
        zoo.load(NAME, compute=CPU, storage=storage)
    assert words in str(error.value)
    assert f"{NAME}.zip" in str(error.value)
    assert [path.name for path in (tmp_path / "weights").iterdir()] == [f"{NAME}.lock"]
    server.content = released_zip(NAME)
    assert zoo.load(NAME, compute=CPU, storage=storage).config.name == NAME


def test_a_model_larger_than_any_release_is_not_unpacked(server, tmp_path, monkeypatch):
    monkeypatch.setattr(zoo, "_LARGEST", 1000)
    server.content = released_zip(NAME)
    with pytest.raises(CheckpointError, match=rf"{len(weights_file())} bytes, expected are at most 1000"):
        zoo.load(NAME, compute=CPU, storage=Storage(cache=tmp_path))
    assert not (tmp_path / "weights" / NAME).exists()


@pytest.mark.parametrize("step", ["downloading", "unpacking"])
def test_a_full_disk_is_named_before_each_step_and_what_was_downloaded_is_kept(server, tmp_path, monkeypatch, step):
    server.content, storage = released_zip(NAME), Storage(cache=tmp_path)
    with monkeypatch.context() as full:
        full.setattr(
            shutil, "disk_usage", lambda _: disk(0 if step == "downloading" or downloaded(tmp_path) else 1 << 30)
        )
        with pytest.raises(StorageError, match=r"weights: the disk is full, 0\.0 MiB .* \d\.\d MiB are to be.*--cache"):
            zoo.load(NAME, compute=CPU, storage=storage)
    assert bool(downloaded(tmp_path)) == (step == "unpacking")
    assert zoo.load(NAME, compute=CPU, storage=storage).config.name == NAME
    assert len(server.ranges) == (2 if step == "downloading" else 1)


def downloaded(cache):
    return list((cache / "weights").glob("*.zip*"))


def test_a_disk_that_is_full_while_downloading_is_named(server, tmp_path, monkeypatch):
    server.content = released_zip(NAME)
    monkeypatch.setattr(Path, "open", full_disk(Path.open))
    with pytest.raises(StorageError, match=r"weights: the disk is full, .* are free; \d\.\d MiB are to be written"):
        zoo.load(NAME, compute=CPU, storage=Storage(cache=tmp_path))


def test_what_macos_adds_is_passed_over_and_no_entry_leaves_the_cache(server, tmp_path):
    server.content = zip_of({"__MACOSX/._c.pth": b"twin", "../../../c.pth": weights_file()})
    assert zoo.load(NAME, compute=CPU, storage=Storage(cache=tmp_path / "cache")).config.name == NAME
    assert [path.name for path in tmp_path.rglob("*.pth")] == ["c.pth"]
    assert (tmp_path / "cache" / "weights" / NAME / "c.pth").is_file()


@pytest.mark.parametrize("blind", [False, True])
def test_a_part_of_a_file_that_has_changed_since_is_not_continued(server, tmp_path, blind):
    server.content, server.limit, server.version = released_zip(NAME, "old"), 50_000, '"1"'
    with pytest.raises(CheckpointError, match=r"run again|cannot be downloaded"):
        zoo.load(NAME, compute=CPU, storage=Storage(cache=tmp_path))
    server.content, server.limit, server.version, server.blind = released_zip(NAME, "new"), None, '"2"', blind
    assert zoo.load(NAME, compute=CPU, storage=Storage(cache=tmp_path)).config.name == NAME
    assert server.ranges == [None, "bytes=50000-", *([None] if blind else [])]
    assert sorted(path.name for path in (tmp_path / "weights").iterdir()) == [NAME, f"{NAME}.lock"]


@pytest.mark.parametrize("version", ['W/"1"', 'W/""'])
def test_a_part_of_a_file_with_a_weak_etag_is_not_continued(server, tmp_path, version):
    server.content, server.limit, server.version = released_zip(NAME), 50_000, version
    with pytest.raises(CheckpointError, match=r"run again|cannot be downloaded"):
        zoo.load(NAME, compute=CPU, storage=Storage(cache=tmp_path))
    server.limit = None
    assert zoo.load(NAME, compute=CPU, storage=Storage(cache=tmp_path)).config.name == NAME
    assert server.ranges == [None, None]


def test_a_release_that_has_changed_since_its_first_download_is_refused(server, tmp_path):
    server.content, storage = released_zip(NAME), Storage(cache=tmp_path)
    zoo.load(NAME, compute=CPU, storage=storage)
    sums = tmp_path / "weights.sha256"
    assert sums.read_text() == f"{hashlib.sha256(server.content).hexdigest()}  {NAME}.zip\n"
    shutil.rmtree(tmp_path / "weights" / NAME)
    zoo.load(NAME, compute=CPU, storage=storage)
    shutil.rmtree(tmp_path / "weights" / NAME)
    server.content = released_zip(NAME, "other words")
    with pytest.raises(
        CheckpointError, match=r"expected is \w+, as at its first download.*remove its line from .*sha256"
    ):
        zoo.load(NAME, compute=CPU, storage=storage)
    sums.unlink()
    zoo.load(NAME, compute=CPU, storage=storage)


def test_a_release_whose_sum_is_known_is_compared_with_it(server, tmp_path, monkeypatch):
    monkeypatch.setitem(zoo.RELEASED, NAME, replace(zoo.RELEASED[NAME], checksum=f"sha256:{0:064}"))
    server.content = released_zip(NAME)
    with pytest.raises(CheckpointError, match="expected is 0000"):
        zoo.load(NAME, compute=CPU, storage=Storage(cache=tmp_path))
    assert not (tmp_path / "weights" / NAME).exists()


def test_weights_in_a_cache_that_is_only_read_need_no_lock(tmp_path):
    folder = tmp_path / "weights" / NAME
    folder.mkdir(parents=True)
    (folder / "checkpoint-300.pth").write_bytes(weights_file())
    zoo.load(NAME, compute=CPU, storage=Storage(cache=tmp_path))
    assert [path.name for path in (tmp_path / "weights").iterdir()] == [NAME]


def test_every_released_name_says_its_configuration():
    for name in zoo.RELEASED:
        assert zoo.checkpoint.parse_name(name) is not None
    config = zoo.checkpoint.parse_name("m2d_clap_vit_base-80x1001p16x16p16kpBpTI-2025")
    assert (config.vit.input_size, config.sample_rate) == ((80, 1001), 16000)


def test_a_twin_of_the_weights_of_a_variant_is_no_second_one(tmp_path, monkeypatch):
    monkeypatch.setenv("M2D_BENCH_CACHE", str(tmp_path))
    folder = tmp_path / "weights" / NAME
    folder.mkdir(parents=True)
    (folder / "._checkpoint-300.pth").write_bytes(b"twin")
    with pytest.raises(CheckpointError, match="holds no folder"):
        variants.find("m2d")
    (folder / "checkpoint-300.pth").write_bytes(weights_file())
    assert variants.find("m2d") == str(folder)


def test_torchs_default_dtype_changes_no_random_model():
    name, waveform = "random:m2d_s_vit_tiny-80x200p80x2", torch.linspace(-1, 1, 9000)[None]
    expected = zoo.load(name, compute=CPU)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        found = zoo.load(name, compute=CPU)
        embeddings = found.scene_embeddings(waveform)
    finally:
        torch.set_default_dtype(before)
    assert found.digest == expected.digest
    assert embeddings.dtype == torch.float32
    assert torch.equal(embeddings, expected.scene_embeddings(waveform))
