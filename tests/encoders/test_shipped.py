"""The model that ships is what its card says; `python -m tests.encoders.test_shipped CHECKPOINT` ships another."""

import io
import re
import sys
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import pytest

from m2d_bench import linear, runs
from m2d_bench.cli import main
from m2d_bench.encoders import zoo
from m2d_bench.errors import CheckpointError
from m2d_bench.settings import Compute

FOLDER = Path(zoo.__file__).with_name("m2d_tiny")
RECORDS = Path(__file__).parents[2] / "docs" / "records"
WEIGHTS, CARD = FOLDER / "m2d_tiny.safetensors", FOLDER / "MODEL_CARD.md"
EXAMPLE = re.compile(r"```python\n(.*?)```\n\n```text\n(.*?)```", re.DOTALL)


def printed(script):
    """What the card's script prints."""
    with redirect_stdout(io.StringIO()) as out:
        exec(script, {})
    return out.getvalue()


def test_it_is_small_and_gives_the_numbers_of_its_card():
    script, numbers = EXAMPLE.search(CARD.read_text(encoding="utf-8")).groups()
    (digest, *found), (expected, *values) = printed(script).split(), numbers.split()
    assert WEIGHTS.stat().st_size <= 12e6
    assert digest == expected
    assert len(values) == 6
    assert list(map(float, found)) == pytest.approx(list(map(float, values)), abs=2e-3)


def test_it_loads_without_a_word_and_beside_random_weights_of_the_same_settings(caplog):
    compute = Compute(device="cpu", precision="fp32")
    encoder, random = (zoo.load(name, compute=compute) for name in ("m2d_tiny", "random:m2d_tiny"))
    assert encoder.config.name == "m2d_tiny"
    assert replace(random.config, name="m2d_tiny") == encoder.config
    assert random.digest != encoder.digest
    assert not caplog.text


def flipped(content):
    return content[:-1] + bytes([content[-1] ^ 1])


DAMAGE = {
    "missing": lambda _: None,
    "empty": lambda _: b"",
    "truncated": lambda content: content[: len(content) // 2],
    "zeroed": lambda content: bytes(len(content)),
    "flipped": flipped,
    "a pointer of Git LFS": lambda _: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 10815720\n",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_weights_that_are_missing_or_damaged_are_had_anew_with_the_package(tmp_path, monkeypatch, damage):
    path, content = tmp_path / WEIGHTS.name, DAMAGE[damage](WEIGHTS.read_bytes())
    if content is not None:
        path.write_bytes(content)
    monkeypatch.setattr(zoo, "_SHIPPED", path)
    for name in ("m2d_tiny", "random:m2d_tiny"):
        with pytest.raises(CheckpointError, match=r"\. It comes with m2d-bench: reinstall that\.$") as caught:
            zoo.load(name)
        assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.slow
def test_it_scores_what_the_records_say(tmp_path):
    (run,) = linear("m2d_tiny", "events", seeds=1, runs=tmp_path, precision="fp32", device="cpu")
    (recorded,) = RECORDS.glob(f"{run.encoder['digest']}/events/linear-*.json")
    scores = [score.score for score in runs.load(recorded).scores if score.seed == run.scores[0].seed]
    assert fmean(score.score for score in run.scores) == pytest.approx(fmean(scores), abs=0.02)


if __name__ == "__main__":
    if code := main(["models", "convert", *sys.argv[1:], str(WEIGHTS), "--encoder-only", "--half"]):
        sys.exit(code)
    card = CARD.read_text(encoding="utf-8")
    script = EXAMPLE.search(card)[1]
    CARD.write_text(EXAMPLE.sub(lambda _: f"```python\n{script}```\n\n```text\n{printed(script)}```", card), "utf-8")
