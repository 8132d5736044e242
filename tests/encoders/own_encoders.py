"""Encoders of other people, small, as files of their own, for the tests of names."""

OWN = """
import torch
from scale import SCALE  # lies beside this file


class Loudness(torch.nn.Module):
    sample_rate = 16000
    hop_ms = 20.0
    timestamp_embedding_size = 2

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([SCALE, 1.0]))

    def timestamp_embeddings(self, waveform):
        frames = waveform.unfold(1, 320, 320)
        times = (torch.arange(frames.shape[1], dtype=torch.float64) + 0.5) * 20
        return self.weight * torch.stack([frames.std(2), frames.abs().mean(2)], 2), times.expand(len(frames), -1)

    def scene_embeddings(self, waveform):
        return self.timestamp_embeddings(waveform)[0].mean(1)


def make():
    return Loudness()


class Layers(Loudness):
    def hidden_states(self, waveform):
        frames, _ = self.timestamp_embeddings(waveform)
        return [frames, 2 * frames]


class SceneOnly(torch.nn.Module):
    sample_rate = 16000

    def scene_embeddings(self, waveform):
        return torch.stack([waveform.std(1), waveform.abs().mean(1)], 1)
"""

HEAR = """
import torch


class Model(torch.nn.Module):
    sample_rate = 16000
    scene_embedding_size = timestamp_embedding_size = 3

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(320, 3)


def load_model(model_file_path=""):
    torch.manual_seed(0)
    model = Model()
    if model_file_path:
        model.load_state_dict(torch.load(model_file_path))
    return model


def get_timestamp_embeddings(audio, model):
    embeddings = model.linear(audio.unfold(1, 320, 320))
    times = (torch.arange(embeddings.shape[1]) + 0.5) * 20
    return embeddings, times.expand(len(audio), -1)


def get_scene_embeddings(audio, model):
    return get_timestamp_embeddings(audio, model)[0].mean(1)
"""


def write(folder):
    """The files in a folder."""
    (folder / "own.py").write_text(OWN)
    (folder / "scale.py").write_text("SCALE = 3.0\n")
    (folder / "hear_own.py").write_text(HEAR)
    return folder
