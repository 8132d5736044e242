"""Small random models of transformers with their feature extractors, saved as a repository holds them."""

import json

import torch
from safetensors.torch import save_file

from m2d_bench.encoders.huggingface import import_transformers

SPEECH = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "conv_dim": (16,) * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
}
WHISPER = {
    "vocab_size": 8,
    "num_mel_bins": 16,
    "d_model": 32,
    "encoder_layers": 3,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 64,
    "decoder_layers": 1,
    "decoder_attention_heads": 2,
    "decoder_ffn_dim": 32,
    "max_source_positions": 50,
    "max_target_positions": 8,
    **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"), 0),
}
AST = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_length": 64,
    "num_mel_bins": 32,
}
CLAP = {
    "text_config": {
        "vocab_size": 8,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    },
    "audio_config": {
        "num_mel_bins": 32,
        "spec_size": 64,
        "window_size": 4,
        "depths": (2, 1),
        "num_attention_heads": (1, 2),
        "patch_embeds_hidden_size": 16,
        "hidden_size": 32,
    },
    "projection_dim": 16,
}
FUSED = {**CLAP["audio_config"], "enable_fusion": True}
CLAP_EXTRACTOR = {
    "feature_size": 32,
    "sampling_rate": 16000,
    "hop_length": 160,
    "max_length_s": 1,
    "fft_window_size": 512,
    "frequency_max": 8000,
}
WINDOWED = {
    "whisper": ("whisper", WHISPER, "WhisperFeatureExtractor", {"feature_size": 16, "chunk_length": 1}),
    "ast": ("audio-spectrogram-transformer", AST, "ASTFeatureExtractor", {"num_mel_bins": 32, "max_length": 64}),
    "clap": ("clap", CLAP, "ClapFeatureExtractor", {**CLAP_EXTRACTOR, "truncation": "rand_trunc"}),
    "clap-fused": ("clap", {**CLAP, "audio_config": FUSED}, "ClapFeatureExtractor", CLAP_EXTRACTOR),
}
MEASURED = {
    "wav2vec2-bert": (
        "wav2vec2-bert",
        {**SPEECH, "feature_projection_input_dim": 32},
        "SeamlessM4TFeatureExtractor",
        {"feature_size": 16, "num_mel_bins": 16},
    ),
    "moonshine": (
        "moonshine",
        {
            "vocab_size": 8,
            "hidden_size": 32,
            "intermediate_size": 32,
            **{f"{part}_num_hidden_layers": 3 for part in ("encoder", "decoder")},
            **{f"{part}_num_attention_heads": 2 for part in ("encoder", "decoder")},
        },
        "Wav2Vec2FeatureExtractor",
        {},
    ),
    "encodec": ("encodec", {"num_filters": 4, "hidden_size": 8, "codebook_size": 8}, "EncodecFeatureExtractor", {}),
}


def save(folder, model_type, settings, extractor, prepared):
    """A model whose weights are all random, also those that begin as zeros."""
    transformers = import_transformers()
    torch.manual_seed(0)
    model = transformers.AutoModel.from_config(transformers.AutoConfig.for_model(model_type, **settings))
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    model.save_pretrained(folder)
    getattr(transformers, extractor)(**prepared).save_pretrained(folder)
    return folder


CODE = """
import numpy as np
import torch
from transformers import BatchFeature, PretrainedConfig, PreTrainedModel, SequenceFeatureExtractor
from transformers.modeling_outputs import BaseModelOutputWithPooling, SequenceClassifierOutput

print("code of the repository ran")


class Config(PretrainedConfig):
    model_type = "mine"

    def __init__(self, gives="frames", **others):
        super().__init__(**others)
        self.gives = gives


class Extractor(SequenceFeatureExtractor):
    def __call__(self, clip, sampling_rate=None, return_tensors=None):
        assert sampling_rate == self.sampling_rate
        return BatchFeature({"input_values": torch.from_numpy(clip)[None]})


class Model(PreTrainedModel):
    config_class = Config

    def __init__(self, config):
        super().__init__(config)
        self.linear = torch.nn.Linear(400, 6)
        self.post_init()

    def forward(self, input_values):
        if self.config.gives == "one window":
            input_values = torch.nn.functional.pad(input_values, (0, 8000))[:, :8000]
        frames = self.linear(input_values.unfold(1, 400, 400))
        if self.config.gives == "one vector":
            return BaseModelOutputWithPooling(pooler_output=frames.mean(1))
        return SequenceClassifierOutput(logits=frames.mean(1), hidden_states=frames)
"""


def save_with_code(folder, gives="frames", code=CODE):
    """A model with code of its own, which gives its frames as Dasheng does."""
    folder.mkdir(parents=True)
    (folder / "mine.py").write_text(code)
    classes = {"AutoConfig": "mine.Config", "AutoModel": "mine.Model", "AutoFeatureExtractor": "mine.Extractor"}
    config = {"model_type": "mine", "gives": gives, "auto_map": classes}
    (folder / "config.json").write_text(json.dumps(config))
    prepared = {"feature_size": 1, "sampling_rate": 16000, "padding_value": 0.0, "auto_map": classes}
    (folder / "preprocessor_config.json").write_text(json.dumps(prepared))
    generator = torch.Generator().manual_seed(0)
    weights = {
        "linear.weight": torch.randn(6, 400, generator=generator),
        "linear.bias": torch.randn(6, generator=generator),
    }
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder
