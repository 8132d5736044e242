"""Models of Hugging Face's transformers under the contract, by name: `hf:REPO_OR_FOLDER[@layer=N]`."""

from m2d_bench.encoders.huggingface.base import HuggingFaceEncoder
from m2d_bench.encoders.huggingface.loading import PREFIX, import_transformers, load

__all__ = ["PREFIX", "HuggingFaceEncoder", "import_transformers", "load"]
