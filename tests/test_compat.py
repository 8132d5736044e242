"""What is restored for s3prl: right where it can be compared, and never over what is there."""

import argparse
import importlib
import sys

import numpy as np
import pytest
import soundfile
import torch
from torch.utils.data import SequentialSampler, WeightedRandomSampler

from m2d_bench import compat
from m2d_bench.errors import UsageError
from tests.processes import imported_anew

RATE = 16000


def tone(seconds, amplitude=0.3):
    return amplitude * np.sin(2 * np.pi * 440 * np.arange(round(seconds * RATE)) / RATE)


def effects(wave, *chain, rate=RATE):
    found, found_rate = compat.apply_effects(torch.from_numpy(np.atleast_2d(wave).astype(np.float32)), rate, chain)
    return found[0].numpy(), found_rate


def test_load_reads_channels_first_and_parts(tmp_path):
    wave = np.stack([tone(0.1), tone(0.1, 0.1)], axis=1)
    soundfile.write(tmp_path / "a.wav", wave, RATE, subtype="FLOAT")
    found, rate = compat.load(tmp_path / "a.wav")
    assert (found.shape, found.dtype, rate) == ((2, 1600), torch.float32, RATE)
    part, _ = compat.load(str(tmp_path / "a.wav"), frame_offset=100, num_frames=50)
    assert torch.equal(part, found[:, 100:150])


def test_effects_of_speech_commands_are_mono_resampled_and_3_db_down(tmp_path):
    time = np.arange(8000) / 8000
    stereo = np.stack([0.4 * np.sin(2 * np.pi * 440 * time), np.zeros(8000)], axis=1)
    soundfile.write(tmp_path / "a.wav", stereo, 8000, subtype="FLOAT")
    chain = [["channels", "1"], ["rate", "16000"], ["gain", "-3.0"]]
    found, rate = compat.apply_effects_file(tmp_path / "a.wav", chain)
    assert (found.shape, rate) == ((1, 16000), 16000)
    expected = tone(1.0, 0.2 * 10 ** (-3 / 20))
    assert np.abs(found[0].numpy() - expected)[200:-200].max() < 1e-3


def test_silence_is_cut_where_it_lasts_and_kept_where_it_is_short():
    quiet = [np.zeros(round(seconds * RATE)) for seconds in (0.5, 0.05, 1.0, 0.3)]
    wave = np.concatenate([quiet[0], tone(0.5), quiet[1], tone(0.4), quiet[2], tone(0.3), quiet[3]])
    found, _ = effects(wave, ["silence", "1", "0.1", "0.1%", "-1", "0.1", "0.1%"])
    kept = len(found) / RATE
    assert 1.25 <= kept <= 1.25 + 3 * 0.02  # three stretches of sound, each to the end of its 20 ms window
    blip, _ = effects(
        np.concatenate([quiet[0], tone(0.04), quiet[2]]), ["silence", "1", "0.1", "0.1%", "-1", "0.1", "0.1%"]
    )
    assert len(blip) == 0


def test_sound_begins_with_as_much_of_it_as_the_effect_asks():
    pieces = [np.zeros(8000), tone(0.06), np.zeros(960), tone(0.06), np.zeros(16000)]
    found, _ = effects(np.concatenate(pieces), ["silence", "1", "0.1", "0.1%", "-1", "0.1", "0.1%"])
    assert len(found) == 0


def test_load_gives_the_layout_asked_for(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros((100, 2)), RATE)
    assert compat.load(tmp_path / "a.wav", channels_first=False)[0].shape == (100, 2)
    with pytest.raises(UsageError, match="normalize=False"):
        compat.load(tmp_path / "a.wav", normalize=False)


def test_on_a_cpu_no_gpu_is_seen_and_none_is_asked_for(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.Tensor, "cuda", torch.Tensor.cuda)
    compat.stay_on_cpu()
    assert not torch.cuda.is_available()
    assert torch.zeros(1).cuda().device.type == "cpu"


def test_another_effect_is_refused():
    with pytest.raises(UsageError, match="SoX effect reverb 50 is not rebuilt; known: channels 1, rate, gain"):
        effects(tone(0.1), ["reverb", "50"])


def test_si_sdr_is_the_one_of_the_paper():
    rng = np.random.default_rng(0)
    clean = rng.standard_normal((2, 4000))
    orthogonal = rng.standard_normal((2, 4000))
    orthogonal -= (orthogonal * clean).sum(1, keepdims=True) / (clean**2).sum(1, keepdims=True) * clean
    orthogonal *= np.linalg.norm(clean, axis=1, keepdims=True) / np.linalg.norm(orthogonal, axis=1, keepdims=True)
    estimate = 3 * (clean + 0.1 * orthogonal)
    found = compat.get_metrics(clean.sum(0)[None], clean, estimate, metrics_list=["si_sdr"], sample_rate=RATE)
    assert found["si_sdr"] == pytest.approx(20)
    assert found["input_si_sdr"] == pytest.approx(0, abs=0.3)
    with pytest.raises(UsageError, match="need asteroid"):
        compat.get_metrics(clean, clean, clean, metrics_list=["pesq"])


def test_the_sampler_wrapper_shares_one_draw_among_processes():
    parts = [
        list(
            compat.DistributedSamplerWrapper(SequentialSampler(range(10, 20)), num_replicas=2, rank=rank, shuffle=False)
        )
        for rank in (0, 1)
    ]
    assert sorted(parts[0] + parts[1]) == list(range(10))
    weighted = WeightedRandomSampler([0.0, 1.0], 8)
    assert list(compat.DistributedSamplerWrapper(weighted, num_replicas=2, rank=0)) == [1] * 4


def test_restoring_keeps_what_a_package_has(monkeypatch):
    torchaudio = pytest.importorskip("s3prl") and compat.import_torchaudio()
    for name in ("set_audio_backend", "info", "load"):
        monkeypatch.setattr(torchaudio, name, "theirs", raising=False)
    compat.restore()
    assert (torchaudio.set_audio_backend, torchaudio.info, torchaudio.load) == ("theirs",) * 3


LOADED = "raise OSError('libtorchaudio.so does not load')\n"
UNAVAILABLE = "class NoSox:\n    is_available = staticmethod(lambda: False)\nlazy_import_sox_ext = lambda: NoSox\n"
BEFORE_2_9 = {
    "__init__": "from . import _extension, sox_effects\n",
    "_extension/__init__": "import importlib.util\n"
    f"if importlib.util.find_spec('torchaudio.lib._torchaudio'):\n    {LOADED}{UNAVAILABLE}",
    "lib/_torchaudio": "",
    "sox_effects": "def apply_effects_file(path, effects):\n    raise OSError\n",
}
SINCE_2_9 = {
    "__init__": "from . import functional\n",
    "_extension/__init__": LOADED,
    "functional": "from torchaudio._extension import _IS_TORCHAUDIO_EXT_AVAILABLE, fail_if_no_align\n",
}


@pytest.mark.parametrize("modules", [BEFORE_2_9, SINCE_2_9])
def test_torchaudio_serves_without_its_compiled_part(modules, tmp_path, monkeypatch):
    for name, text in modules.items():
        path = tmp_path / "torchaudio" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    with imported_anew("torchaudio"):
        for _ in range(2):
            compat.restore()
            from torchaudio.sox_effects import apply_effects_file

            assert apply_effects_file is compat.apply_effects_file


def test_names_that_s3prl_imports_are_there():
    pytest.importorskip("s3prl")
    compat.restore()
    import huggingface_hub
    import torchaudio
    from catalyst.data.sampler import DistributedSamplerWrapper
    from torchaudio.sox_effects import apply_effects_file

    assert callable(apply_effects_file)
    assert issubclass(DistributedSamplerWrapper, torch.utils.data.DistributedSampler)
    assert torchaudio.transforms.Resample(8000, 16000)(torch.zeros(1, 800)).shape == (1, 1600)
    with pytest.raises(UsageError, match=r"huggingface_hub below 1\.0"):
        huggingface_hub.Repository("x")


def test_s3prls_checkpoints_load_without_running_code(tmp_path):
    pytest.importorskip("s3prl")
    compat.restore()
    torch.save({"Args": argparse.Namespace(seed=1), "Step": 3}, tmp_path / "states-3.ckpt")
    assert torch.load(tmp_path / "states-3.ckpt")["Args"].seed == 1


TORCHVISION = {
    "__init__.py": "from torchvision import _meta_registrations, transforms\n",
    "_meta_registrations.py": "raise RuntimeError('operator torchvision::nms does not exist')\n",
    "transforms.py": "class Compose: ...\n",
}


@pytest.mark.parametrize("loads", [True, False])
def test_torchvision_is_there_without_its_compiled_operators(tmp_path, monkeypatch, loads):
    for name, text in TORCHVISION.items():
        path = tmp_path / "torchvision" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("" if loads and "raise" in text else text)
    monkeypatch.syspath_prepend(str(tmp_path))
    with imported_anew("torchvision"):
        compat.import_torch_libraries()
        from torchvision.transforms import Compose

        assert Compose.__module__ == "torchvision.transforms"
        assert hasattr(sys.modules["torchvision._meta_registrations"], "__file__") == loads


def test_imp_is_there_where_python_left_it_out(monkeypatch):
    monkeypatch.setattr(compat, "find_spec", lambda name: None)
    with imported_anew("imp"):
        compat.restore_for_evar()
        from imp import reload

        assert reload is importlib.reload
