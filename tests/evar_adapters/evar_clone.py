"""A miniature of a clone of EVAR, to its published contract: base class, scripts that take a YAML and a task."""

from __future__ import annotations

from pathlib import Path

FILES = {
    "evar/__init__.py": "# EVAR\n",
    "evar/ar_base.py": '''
import torch


class Settings(dict):
    """A dictionary whose keys are attributes too."""

    __getattr__ = dict.__getitem__
    __setattr__ = dict.__setitem__


class BaseAudioRepr(torch.nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.cfg = Settings(cfg)
        self.augment = None

    def set_augment_tf_feature_fn(self, augment):
        self.augment = augment

    def augment_if_training(self, spectrogram):
        return self.augment(spectrogram) if self.training and self.augment else spectrogram

    def precompute(self, device, data_loader):
        pass
''',
    "lineareval.py": """
import sys

import torch
import yaml

import evar
from evar.ar_base import Settings

cfg = Settings(yaml.safe_load(open(sys.argv[1])))
for option in sys.argv[3:]:
    if option.startswith("weight_file="):
        cfg.weight_file = option.split("=", 1)[1]
ar = eval("evar." + cfg.audio_repr)(cfg)
ar.precompute("cpu", [])
features = ar.eval()(torch.zeros(2, 16000))
print("lineareval", sys.argv[2:], tuple(features.shape), cfg.feature_d)
""",
    "finetune.py": "import sys\nprint('finetune', sys.argv[2:])\n",
    "2pass_lineareval.py": """
import subprocess
import sys

for seed in (42, 43):
    subprocess.run(["python", "lineareval.py", *sys.argv[1:], f"--seed={seed}"], check=True)
""",
    "config/m2d.yaml": "audio_repr: ar_m2d.AR_M2D\nsample_rate: 16000\n",
    "evar/ds_tasks.py": "_defs = {'esc50': [1, 5.0, 'ESC', False], 'us8k': [10, 4.0, None, False]}\n",
    "evar/metadata/esc50.csv": "file_name,label,fold\n",
    "work/16k/ESC/1.wav": "",
}


def write_clone(root: Path) -> Path:
    """The miniature, in a folder."""
    for name, text in FILES.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.lstrip("\n"))
    return root


def snapshot(root: Path) -> dict[str, bytes]:
    """Every file of a folder, byte for byte."""
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}
