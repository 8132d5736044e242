"""How hard are the built-in synthetic tasks, and how long do they take to generate?

    python benchmarks/builtin_tasks.py [TASK …]

Prints a Markdown table. The baseline knows nothing but each clip's log-mel statistics: mean and standard deviation over
time of an 80-bin log-mel at 16 kHz, standardised, then scikit-learn's logistic regression, averaged over the folds.
"""

from __future__ import annotations

import sys
import time

import numpy as np
import soxr
from nnAudio.librosa_functions import get_mel
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from m2d_bench import tasks
from m2d_bench.registry import resolve
from m2d_bench.tasks.synthetic.scene import SAMPLE_RATE

RATE, N_FFT, HOP = 16000, 400, 160
MEL = get_mel(sr=RATE, n_fft=N_FFT, n_mels=80, fmin=50, fmax=8000)


def log_mel_statistics(waveform: np.ndarray) -> np.ndarray:
    """Mean and standard deviation over time of the log-mel of a waveform [S] at SAMPLE_RATE; [160]."""
    samples = np.pad(soxr.resample(waveform, SAMPLE_RATE, RATE), N_FFT // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(samples, N_FFT)[::HOP]
    power = np.abs(np.fft.rfft(frames * np.hanning(N_FFT + 1)[:-1])) ** 2
    log_mel = np.log(power @ MEL.T + np.finfo(np.float32).eps)
    return np.concatenate([log_mel.mean(0), log_mel.std(0)])


def cross_validate(features: np.ndarray, labels: np.ndarray, folds: np.ndarray) -> list[float]:
    """Accuracy of logistic regression on each fold [N] of features [N, D] and labels [N], trained on the others."""
    scores = []
    for fold in np.unique(folds):
        test = folds == fold
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
        scores.append(float(model.fit(features[~test], labels[~test]).score(features[test], labels[test])))
    return scores


def main() -> None:
    """Generate each task, score the baseline, print the table."""
    print("| task | clips | classes | folds | chance | baseline accuracy (fold by fold) | seconds to generate |")
    print("|---|---:|---:|---:|---:|---|---:|")
    for name in sys.argv[1:] or tasks.BUILT_IN:
        task = tasks.get(name)
        start = time.perf_counter()
        clips = list(resolve(task.generator)())
        seconds = time.perf_counter() - start
        features = np.stack([log_mel_statistics(clip.waveform) for clip in clips])
        labels, folds = (np.array([getattr(clip, column) for clip in clips]) for column in ("label", "fold"))
        scores = cross_validate(features, labels, folds)
        row = (name, len(clips), len(set(labels)), len(set(folds)), f"{1 / len(set(labels)):.1%}")
        accuracy = f"{np.mean(scores):.1%} ({', '.join(f'{score:.0%}' for score in scores)})"
        print(f"| {' | '.join(map(str, row))} | {accuracy} | {seconds:.1f} |", flush=True)


if __name__ == "__main__":
    main()
