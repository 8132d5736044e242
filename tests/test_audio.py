"""Sound files of every usual kind become mono waveforms at the wanted rate."""

import numpy as np
import pytest
import soundfile

from m2d_bench import audio
from m2d_bench.errors import AudioError


def tone(rate: int, seconds: float = 1.0, frequency: float = 440.0) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * frequency * np.arange(round(rate * seconds)) / rate)


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg", ".mp3", ".aiff"])
def test_formats_are_read_and_resampled(tmp_path, suffix):
    path = tmp_path / f"tone{suffix}"
    soundfile.write(path, tone(44100), 44100)
    waveform = audio.read(path, 16000)
    assert waveform.dtype == np.float32
    assert abs(len(waveform) - 16000) < 800  # MP3 pads
    assert np.argmax(np.abs(np.fft.rfft(waveform[:16000]))) == pytest.approx(440, abs=2)


def test_channels_are_averaged(tmp_path):
    left = tone(16000)
    soundfile.write(tmp_path / "stereo.wav", np.stack([left, 0 * left], axis=1), 16000, subtype="FLOAT")
    assert np.allclose(audio.read(tmp_path / "stereo.wav", 16000), left / 2, atol=1e-6)


def test_a_stretch_is_read_alone(tmp_path):
    whole = tone(16000, 3.0)
    soundfile.write(tmp_path / "tone.wav", whole, 16000, subtype="FLOAT")
    stretch = audio.read(tmp_path / "tone.wav", 16000, offset=1.0, seconds=0.5)
    assert np.allclose(stretch, whole[16000:24000], atol=1e-6)
    assert audio.duration(tmp_path / "tone.wav") == 3.0


def test_unusable_files_get_a_message(tmp_path):
    (tmp_path / "text.wav").write_text("no sound")
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), 16000)
    soundfile.write(tmp_path / "nan.wav", np.full(100, np.nan, dtype=np.float32), 16000, subtype="FLOAT")
    for file, message in {
        "text.wav": "cannot be decoded",
        "gone.wav": "no such file",
        "empty.wav": "no samples",
        "nan.wav": "NaN",
    }.items():
        with pytest.raises(AudioError, match=f"{file}.*{message}"):
            audio.read(tmp_path / file, 16000)
    with pytest.raises(AudioError, match=r"text\.wav"):
        audio.duration(tmp_path / "text.wav")
