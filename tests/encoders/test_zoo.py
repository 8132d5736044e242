"""A name gives the same encoder everywhere, or a message that says what to do."""

import http.server
import io
import threading
import zipfile

import pytest
import torch

from m2d_bench.encoders import download, zoo
from m2d_bench.errors import CheckpointError, UsageError
from m2d_bench.settings import Compute, Storage
from tests.conftest import random_checkpoint

CPU = Compute(device="cpu", precision="fp32")


def test_default_is_random_and_says_so(caplog):
    encoder = zoo.load(compute=CPU)
    assert encoder.config.name == "m2d_tiny"
    assert "not trained" in caplog.text


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
    with pytest.raises(UsageError, match="released form"):
        zoo.load("random:nonsense")
    with pytest.raises(CheckpointError, match="no such file"):
        zoo.load("gone.pth")


def test_unusable_device_and_precision_get_a_message():
    with pytest.raises(UsageError, match="'gpu' cannot be used"):
        zoo.load(compute=Compute(device="gpu"))
    with pytest.raises(UsageError, match="fp64"):
        Compute(precision="fp64")


class Server(http.server.BaseHTTPRequestHandler):
    """Serves one file, with ranges, and breaks off after `limit` bytes if set."""

    content, limit, ranges = b"", None, []

    def do_GET(self):
        wanted = self.headers.get("Range")
        start = int(wanted.split("=")[1].rstrip("-")) if wanted else 0
        type(self).ranges.append(wanted)
        if start >= len(self.content):
            self.send_error(416)
            return
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(self.content) - start))
        self.end_headers()
        self.wfile.write(self.content[start:][: self.limit])

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    Server.limit, Server.ranges = None, []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        monkeypatch.setattr(zoo, "_RELEASES", f"http://127.0.0.1:{httpd.server_port}")
        yield Server
        httpd.shutdown()


def released_zip(name):
    weights, archive = io.BytesIO(), io.BytesIO()
    torch.save({"model": random_checkpoint(name.replace("base", "tiny")).encoder}, weights)
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr(f"{name}/checkpoint-300.pth", weights.getvalue())
        file.writestr(f"{name}/README.txt", "words")
    return archive.getvalue()


NAME = "m2d_vit_base-80x200p16x4-230529"


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


def test_a_file_that_is_there_is_not_fetched(tmp_path):
    (tmp_path / "file").write_text("x")
    download.fetch("http://127.0.0.1:9/file", tmp_path / "file", manual="")
    assert (tmp_path / "file").read_text() == "x"


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
