"""Sound files of every usual kind become mono waveforms at the wanted rate."""

import os
import re
import struct

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


@pytest.mark.parametrize("channels", [1, 2, 3, 7, 8, 9])
def test_in_every_format_the_mean_of_the_channels_is_numpys_to_the_bit(tmp_path, channels):
    waveform = np.random.default_rng(channels).uniform(-1, 1, (3000, channels))
    waveform[:100] = -0.0
    for format_ in soundfile.available_formats().keys() - {"RAW"}:
        path = tmp_path / f"x.{format_.lower()}"
        for subtype in {"PCM_16", "PCM_24", "FLOAT"} & soundfile.available_subtypes(format_).keys():
            try:
                soundfile.write(path, waveform, 44100, subtype, format=format_)
            except soundfile.SoundFileError:  # it holds one channel or two
                continue
            decoded, rate = soundfile.read(path, dtype="float32", always_2d=True)
            assert audio.read(path, rate).tobytes() == decoded.mean(1).tobytes(), path


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


def write(path, waveform, rate=16000, **settings):
    soundfile.write(path, waveform, rate, **settings)
    return path


def cut(path, share=0.5):
    """Leaves a share of a file's bytes."""
    content = path.read_bytes()
    path.write_bytes(content[: round(len(content) * share)])
    return path


def overwrite(path, offset, content):
    """Replaces bytes of a file."""
    before = path.read_bytes()
    path.write_bytes(before[:offset] + content + before[offset + len(content) :])
    return path


STREAMED = {
    "flac": ("x.flac", {}, [(21, b"\xf0" + bytes(4))]),
    "gsm": ("x.wav", {"subtype": "GSM610"}, []),
    "g721": ("x.au", {"subtype": "G721_32"}, []),
    "wav of a pipe": ("x.wav", {}, [(4, b"\xff" * 4), (40, b"\xff" * 4)]),
    "au of a pipe": ("x.au", {}, [(8, b"\xff" * 4)]),
}


@pytest.mark.parametrize(("name", "settings", "changes"), STREAMED.values(), ids=STREAMED)
def test_files_whose_length_is_unknown_or_that_cannot_be_searched_are_read(tmp_path, name, settings, changes):
    path = write(tmp_path / name, tone(16000, 2.0), **settings)
    for offset, content in changes:
        overwrite(path, offset, content)
    whole = audio.read(path, 16000)
    assert len(whole) == pytest.approx(32000, abs=320)
    assert audio.duration(path) == len(whole) / 16000
    assert np.array_equal(audio.read(path, 16000, offset=1.5, seconds=0.25), whole[24000:28000])
    with pytest.raises(AudioError, match="no samples at 3 s"):
        audio.read(path, 16000, offset=3.0)


@pytest.mark.parametrize("rate", [8000, 44100])
@pytest.mark.parametrize(
    ("suffix", "settings"),
    [
        (".wav", {}),
        (".aiff", {}),
        (".au", {}),
        (".w64", {}),
        (".rf64", {}),
        (".mp3", {}),
        (".mp3", {"bitrate_mode": "VARIABLE"}),
        (".wav", {"subtype": "IMA_ADPCM"}),
        (".avr", {}),
        (".nist", {"format": "NIST"}),
    ],
)
def test_what_is_shorter_than_announced_is_an_error_with_both_lengths(tmp_path, suffix, settings, rate):
    path = write(
        tmp_path / f"x{suffix}", np.random.default_rng(0).standard_normal((2 * rate, 2)) * 0.1, rate, **settings
    )
    announced = audio.duration(path)
    audio.read(path, 16000)
    cut(path)
    with pytest.raises(AudioError, match=r"x\.\w+: ends after (\d+) of (\d+) samples; get a whole copy") as error:
        audio.read(path, 16000)
    found, promised = (int(word) for word in str(error.value).split() if word.isdigit())
    assert found == pytest.approx(rate, rel=0.2)
    assert promised == pytest.approx(announced * rate, rel=0.05)
    if suffix != ".mp3":  # a stretch that is there is given
        assert len(audio.read(path, rate, seconds=0.1)) == rate // 10


@pytest.mark.parametrize("mode", ["CONSTANT", "VARIABLE"])
def test_an_mp3_that_lacks_its_last_frames_is_an_error(tmp_path, mode):
    path = write(tmp_path / "x.mp3", np.random.default_rng(0).standard_normal(16000) * 0.1, bitrate_mode=mode)
    assert len(audio.read(path, 16000)) == 16000
    with pytest.raises(AudioError, match="of 16000 samples"):
        audio.read(cut(path, 0.9), 16000)


def test_an_mp3_that_counts_no_frames_promises_no_length(tmp_path, caplog):
    rng = np.random.default_rng(0)
    path = write(
        tmp_path / "x.mp3", np.append(np.zeros(44100), 0.3 * rng.standard_normal(88200)), 44100, bitrate_mode="VARIABLE"
    )
    content = path.read_bytes()
    path.write_bytes(content[content.index(content[:2], 4) :])  # without the frame that holds the Xing header
    assert audio.duration(path) == len(audio.read(path, 44100)) / 44100 == pytest.approx(3.0, abs=0.1)
    path.write_bytes(b"ID3\x04\0\0\0\0\x02\0" + bytes(256) + cut(tmp_path / "x.mp3").read_bytes())
    assert audio.duration(path) == pytest.approx(1.5, abs=0.5)
    assert "x.mp3: ends within a frame; it may be cut short" in caplog.text
    path.write_bytes(b"ID3\x04\0\0\0\0\x02\0" + bytes(256) + content[: len(content) // 2])
    with pytest.raises(AudioError, match="of 132300 samples"):
        audio.read(path, 44100)


@pytest.mark.parametrize("rate", [16000, 44100])
@pytest.mark.parametrize("tag", [b"", b"ID3\x04\0\0\0\0\x02\0" + bytes(256)], ids=["no tag", "ID3"])
@pytest.mark.parametrize("damage", ["no Xing header", "an Xing header that is passed over"])
def test_an_mp3_of_variable_bitrate_is_read_to_its_end_where_no_header_counts(tmp_path, damage, tag, rate):
    loud = 0.3 * np.random.default_rng(0).standard_normal(rate)  # by its first frames the file would end soon
    path = write(tmp_path / "x.mp3", np.append(loud, np.zeros(9 * rate)), rate, bitrate_mode="VARIABLE")
    assert audio.duration(path) == 10.0
    content = path.read_bytes()
    if damage == "no Xing header":
        content = content[content.index(content[:2], 4) :]
    else:
        content = content[:7] + b"\x2e" + content[8:]
    path.write_bytes(tag + content)
    waveform = audio.read(path, rate)
    assert audio.duration(path) == len(waveform) / rate == pytest.approx(10.0, abs=0.2)
    assert np.abs(waveform[rate // 2 : rate]).mean() > 0.1 > 0.01 > np.abs(waveform[2 * rate :]).max()
    assert np.array_equal(audio.read(path, rate, offset=0.5, seconds=1.0), waveform[rate // 2 : rate // 2 + rate])


@pytest.mark.parametrize("junk", [bytes(5000), b"APETAGEX" + bytes(5000)])
def test_an_mp3_whose_frames_no_header_counts_may_not_have_long_tags_of_other_kinds(tmp_path, junk):
    content = write(tmp_path / "x.mp3", tone(44100, 1.0), 44100).read_bytes()
    path = tmp_path / "x.mp3"
    path.write_bytes(content[content.index(content[:2], 4) :] + junk)
    with pytest.raises(AudioError, match=r"x\.mp3: more than 1 KiB .* is no sound"):
        audio.read(path, 44100)
    path.write_bytes(content + junk)
    assert len(audio.read(path, 44100)) == 44100


@pytest.mark.parametrize("subtype", ["NMS_ADPCM_16", "NMS_ADPCM_24", "NMS_ADPCM_32"])
def test_a_wav_of_nms_adpcm_is_read_and_refused_where_it_is_cut(tmp_path, subtype):
    path = write(tmp_path / "x.wav", tone(8000, 2.0), 8000, subtype=subtype)
    assert len(audio.read(path, 8000)) == pytest.approx(16000, abs=160)
    with pytest.raises(AudioError, match=r"(is damaged or cut short|ends after)"):
        audio.read(cut(path), 8000)


@pytest.mark.parametrize(
    ("kind", "subtype"), [("SDS", "PCM_16"), ("SDS", "PCM_24"), ("WVE", "ALAW"), ("MPC2K", "PCM_16")]
)
@pytest.mark.parametrize("share", [0.3, 0.5, 0.97])
def test_files_of_rare_formats_that_are_cut_are_errors(tmp_path, kind, subtype, share):
    wave = np.random.default_rng(0).standard_normal(20000) * 0.1
    path = write(tmp_path / f"x.{kind.lower()}", wave, 8000, subtype=subtype, format=kind)
    assert len(audio.read(path, 8000)) == 20000
    with pytest.raises(AudioError, match=r"(is damaged or cut short|ends after)"):
        audio.read(cut(path, share), 8000)


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
@pytest.mark.parametrize("share", [0.3, 0.7, 0.97])
def test_ogg_files_that_are_cut_or_have_a_broken_page_are_errors(tmp_path, subtype, share):
    path = write(tmp_path / "x.ogg", np.random.default_rng(0).standard_normal(96000) * 0.1, subtype=subtype)
    content = path.read_bytes()
    assert len(audio.read(path, 16000)) == 96000
    cut(path, share)
    with pytest.raises(AudioError, match=r"x\.ogg: (is damaged or cut short|ends after)"):
        audio.read(path, 16000)
    path.write_bytes(content)
    overwrite(path, round(len(content) * share), b"no sound")
    with pytest.raises(AudioError, match=r"x\.ogg: (is damaged or cut short|ends after)"):
        audio.read(path, 16000)


@pytest.mark.parametrize(
    ("offset", "content", "message"),
    [
        (24, struct.pack("<I", 7), "its header says 7 Hz; allowed are 1000 to 1000000"),
        (24, struct.pack("<I", 2**31 - 1), "its header says 2147483647 Hz"),
        (22, struct.pack("<H", 1000), "its header says 1000 channels; at most 256"),
        (22, struct.pack("<H", 0), "cannot be decoded"),
        (8, b"WAVE"[::-1], "cannot be decoded"),
    ],
)
def test_a_header_that_cannot_be_is_not_believed(tmp_path, offset, content, message):
    path = overwrite(write(tmp_path / "x.wav", tone(16000)), offset, content)
    for function in (audio.duration, lambda path: audio.read(path, 16000)):
        with pytest.raises(AudioError, match=rf"x\.wav: {message}"):
            function(path)


def test_a_length_that_no_memory_holds_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    path = overwrite(write(tmp_path / "x.flac", tone(16000)), 21, b"\xff" * 5)
    with pytest.raises(AudioError, match=r"x\.flac: its \d+ samples need \d+ GiB, more memory than this machine has"):
        audio.read(path, 16000)
    assert len(audio.read(path, 16000, seconds=0.5)) == 8000
    monkeypatch.setattr(audio, "_memory", lambda: 3 * 4 * 10_000)  # a length nobody announces is counted as it comes
    overwrite(path, 21, b"\xf0" + bytes(4))
    with pytest.raises(AudioError, match="its 16000 samples need"):
        audio.read(path, 16000)


def test_the_memory_to_read_a_file_is_told_by_its_header(tmp_path):
    path = write(tmp_path / "x.flac", tone(16000))
    assert audio.memory_to_read(path) == 12 * 16000
    assert audio.memory_to_read(path, seconds=0.25) == 12 * 4000
    overwrite(path, 21, b"\xf0" + bytes(4))
    assert audio.memory_to_read(path) == np.inf
    assert audio.memory_to_read(tmp_path / "none.wav") == 0


def test_a_limit_beyond_any_memory_takes_what_is_there(tmp_path):
    path = write(tmp_path / "x.wav", tone(16000))
    for seconds in (1e18, np.inf):
        assert len(audio.read(path, 16000, seconds=seconds)) == 16000


@pytest.mark.parametrize(
    "error", [MemoryError(), OverflowError("too large"), UnicodeDecodeError("utf-8", b"", 0, 1, "x")]
)
def test_whatever_a_decoder_raises_names_the_file(tmp_path, monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(soundfile.SoundFile, "read", fail)
    with pytest.raises(AudioError, match=r"x\.wav: cannot be decoded \(.+\)"):
        audio.read(write(tmp_path / "x.wav", tone(16000)), 16000)


def test_names_of_any_bytes_are_opened(tmp_path):
    path = write(tmp_path / "x.flac", tone(16000))
    path = path.rename(os.fsdecode(os.fsencode(tmp_path) + b"/\xe9\xff \n.flac"))
    assert len(audio.read(path, 8000)) == 8000
    assert audio.duration(path) == 1.0


def test_what_is_no_file_of_sound_is_named(tmp_path):
    (tmp_path / "x.raw").write_bytes(bytes(1000))
    (tmp_path / "x.m4a").write_bytes(bytes(1000))
    (tmp_path / "x.wav").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    os.mkfifo(tmp_path / "pipe.wav")
    write(tmp_path / "short.wav", tone(16000)[:2], 96000)
    for name, message in {
        "x.raw": "bare samples",
        "x.m4a": r"cannot be decoded .*Formats that can be read: .*flac",
        "x.wav": r"cannot be decoded \(a pointer of Git LFS; git lfs pull",
        "pipe.wav": "is not a file",
        "": "is not a file",
        "nul\0.wav": "null (byte|character)",
        "x" * 300: "name too long",
        "short.wav": "2 samples at 96000 Hz are less than one at 16000 Hz",
    }.items():
        with pytest.raises(AudioError, match=message):
            audio.read(tmp_path / name, 16000)


def test_samples_too_large_for_a_spectrogram_are_an_error_and_integers_get_one_warning(tmp_path, caplog):
    for peak in (1e16, 1e20, 3e38):
        path = write(tmp_path / "x.wav", peak * tone(16000), subtype="FLOAT")
        with pytest.raises(AudioError, match=r"x\.wav: .*(too large for a spectrogram|infinite)"):
            audio.read(path, 16000)
    assert not caplog.messages
    path = write(tmp_path / "loud.wav", 2 * tone(16000), subtype="FLOAT")
    audio.read(path, 16000)
    assert not caplog.messages
    for scale in (2**7, 2**15):
        path = write(tmp_path / f"{scale}.wav", scale * tone(16000), subtype="FLOAT")
        for _ in range(3):
            assert audio.read(path, 16000).max() == pytest.approx(scale / 2, rel=0.01)
    assert [message.split(": ")[1] for message in caplog.messages] == [
        "its samples reach 64; they should be in [-1, 1]. Divide integers by their full scale, for 16 bits 32768.",
        "its samples reach 16384; they should be in [-1, 1]. Divide integers by their full scale, for 16 bits 32768.",
    ]


def test_sounds_are_found_by_libsndfile_s_own_formats_and_the_others_are_counted(tmp_path, caplog):
    for name in ("a.CAF", "b.opus", "c/d.w64", "e.aif", "f.m4a", "c/g.M4A", "h.wma", "i", "j.raw", ".hidden.m4a"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    sounds, others, _ = audio.find_sounds(tmp_path)
    assert sounds == ["a.CAF", "b.opus", "c/d.w64", "e.aif"]
    audio.warn_of_others(tmp_path, others)
    assert "files left out, no sound by their suffix: 2 .m4a, 1 .wma, 1 without suffix, 1 .raw." in caplog.text
    written = {f".{name.lower()}" for name in soundfile.available_formats()}
    assert written - audio.suffixes() == {".raw", ".mat4", ".mat5"}


def test_folders_that_cannot_be_listed_are_told_and_the_others_searched(tmp_path, unlistable):
    for name in ("a/x.wav", "b/c/y.wav", "b/d/z.wav"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    unlistable("a", "d")
    reason = "cannot be listed (Permission denied)."
    assert audio.find_sounds(tmp_path) == (["b/c/y.wav"], [], [("a", reason), ("b/d", reason)])
    assert audio.find_sounds(tmp_path / "a") == ([], [], [(".", reason)])


def test_a_title_that_speaks_of_damage_is_none(tmp_path):
    path = tmp_path / "x.flac"
    with soundfile.SoundFile(path, "w", 16000, 1) as file:
        file.title, file.comment = "Junk after the last page", "Last page lacks an end-of-stream bit"
        file.write(np.zeros(1600))
    assert len(audio.read(path, 16000)) == 1600


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3", "aiff"])
@pytest.mark.parametrize(("share", "end"), [(1.0, b""), (0.6, b""), (0.0, b"no sound"), (1.0, b"no sound")])
def test_inspecting_tells_the_duration_and_finds_what_reading_finds(tmp_path, suffix, share, end):
    path = write(tmp_path / f"x.{suffix}", np.stack([tone(44100, 2.0), tone(44100, 2.0, 300.0)], axis=1), 44100)
    path.write_bytes(path.read_bytes()[: round(share * path.stat().st_size)] + end)
    try:
        audio.read(path, 16000)
    except AudioError as error:
        with pytest.raises(AudioError, match=re.escape(str(error))):
            audio.inspect(path)
    else:
        digest, seconds, *_ = audio.inspect(path)
        assert len(digest) == 64
        assert seconds == audio.duration(path)


@pytest.mark.parametrize(
    ("waveform", "rate", "message"),
    [
        (np.zeros(0), 16000, "no samples at 0 s"),
        (np.full(100, np.nan), 16000, "NaN or infinite"),
        (np.full(100, np.inf), 16000, "NaN or infinite"),
        (np.full(100, 1e38), 16000, "too large for a spectrogram"),
        (np.ones(2), 96000, "2 samples at 96000 Hz are less than one at 16000 Hz"),
    ],
)
def test_inspecting_refuses_samples_that_reading_refuses(tmp_path, waveform, rate, message):
    path = write(tmp_path / "x.wav", waveform, rate, subtype="FLOAT")
    for function in (audio.inspect, lambda path: audio.read(path, 16000)):
        with pytest.raises(AudioError, match=rf"x\.wav: .*{message}"):
            function(path)
