"""The contract of a step: one `Batch` goes in, losses by name come out, averaged and logged each by its name."""

import csv

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("lightning_fabric")

from m2d_bench.pretrain.batch import Batch
from m2d_bench.pretrain.data import open_source
from m2d_bench.pretrain.data.labels import add_labels
from m2d_bench.pretrain.held_out import HeldOutMonitor, split
from m2d_bench.pretrain.methods.m2d import Arguments
from m2d_bench.pretrain.methods.m2d import Method as M2D
from m2d_bench.pretrain.recipe import Recipe, resolve
from m2d_bench.pretrain.trainer import Trainer
from m2d_bench.training.launch import launch
from m2d_bench.training.log import Log, read

pytestmark = pytest.mark.usefixtures("tiny_is_smaller")

RECIPE = {"size": "tiny", "predictor_width": 32, "predictor_depth": 1, "predictor_heads": 2, "input_size": [80, 48]}
RECIPE |= {"effective_batch": 8, "epochs": 2, "warmup_epochs": 0, "base_rate": 1e-9, "mask_ratio": 0.7}


class Supervised(M2D):
    """M2D with a classifier beside it: two losses, one of them of labels."""

    def __init__(self, vit, arguments):
        super().__init__(vit, arguments)
        self.classifier = nn.Linear(vit.width, 2)

    def forward(self, batch, mask):
        result = super().forward(batch, mask)
        logits = self.classifier(self.encode(self.encoder.embed(batch.log_mel)).mean(1))
        parts = {
            "m2d": result.losses["loss"],
            "labels": nn.functional.binary_cross_entropy_with_logits(logits, batch.labels),
            "clip": batch.clips.float().mean(),
        }
        return result._replace(losses={"loss": parts["m2d"] + 0.5 * parts["labels"], **parts})


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Thirty-two log-mels with one of two labels."""
    root, rng = tmp_path_factory.mktemp("clips"), np.random.default_rng(0)
    with (root / "clips.csv").open("w", newline="") as file:
        rows = [["file_name", "label"], *([f"{i}.npy", "ab"[i % 2]] for i in range(32))]
        csv.writer(file).writerows(rows)
    for i in range(32):
        np.save(root / f"{i}.npy", rng.normal(-7, 4, (1, 80, 60)).astype(np.float32))
    source = open_source(root / "clips.csv", 48)
    add_labels(source, root / "clips.csv")
    source.norm_stats = (-7.0, 4.0)
    return source


def steps(source, batch_size, monkeypatch):
    monkeypatch.setattr(Recipe, "build", lambda recipe: Supervised(recipe.vit, Arguments(**recipe.arguments)))
    torch.manual_seed(0)  # of the classifier
    trainer = Trainer(launch("cpu", "fp32"), resolve(RECIPE), source, None, batch_size=batch_size)
    trainer.prepare()
    batches = trainer._batches()
    return [trainer._train(batches) for _ in range(3)]


def test_losses_are_averaged_over_accumulated_batches_each_by_its_name(source, monkeypatch):
    whole, accumulated = steps(source, 8, monkeypatch), steps(source, 2, monkeypatch)
    for one, other in zip(whole, accumulated, strict=True):
        found, expected = ({"loss": step.loss, **step.scalars} for step in (other, one))
        for name in ("loss", "m2d", "labels", "clip"):
            assert float(found[name]) == pytest.approx(float(expected[name]), rel=1e-4), name
        assert float(one.loss) == pytest.approx(float(one.scalars["m2d"] + 0.5 * one.scalars["labels"]), rel=1e-5)
    assert len({float(step.scalars["clip"]) for step in whole}) == 3


def test_held_out_losses_are_logged_each_by_its_name(source, tmp_path):
    held, _ = split(source, 3, 0)
    method = Supervised(resolve(RECIPE).vit, Arguments(predictor_width=32, predictor_depth=1, predictor_heads=2))
    method.initialise(torch.Generator().manual_seed(0))
    with Log(tmp_path) as log:
        HeldOutMonitor(method, held, torch.device("cpu"), log, 0).evaluate(7)
    (record,) = read(tmp_path / "metrics.jsonl")
    assert record["held_out/loss"] == pytest.approx(record["held_out/m2d"] + 0.5 * record["held_out/labels"], rel=1e-5)


def test_every_field_of_a_batch_reaches_the_method_through_precision_and_devices():
    class Echo(nn.Module):
        def forward(self, batch):
            return {"loss": torch.zeros(()), **batch._asdict()}

    index = torch.tensor([2**40, 3])
    clips = torch.randn(2, 1, 80, 48)
    batch = Batch(log_mel=clips, clips=index, starts=index, clean=clips + 1, labels=None, teacher_features=clips[:, 0])
    received = launch("cpu", "bf16").setup_module(Echo())(batch)
    for name, value in batch._asdict().items():
        if value is None or not value.is_floating_point():
            assert received[name] is value or torch.equal(received[name], value), name
        else:
            torch.testing.assert_close(received[name], value, rtol=2**-8, atol=0)
