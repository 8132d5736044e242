"""LibriSpeech as phonemes, the data set of s3prl's phoneme recognition; s3prl's package on PyPI leaves its own out.

Clips and words are read from LibriSpeech as published, `{path}/{split}/**/*.trans.txt` beside `.flac` files, or from
lists `{csv_dir}/{split}` with the columns wav_path and transcription; each word becomes its first entry in the
lexicons. Read by s3prl as `s3prl.downstream.ctc.corpus.libriphone`.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from m2d_bench.errors import DataError

Clip = tuple[str, list[int]]


class LibriPhoneDataset(Dataset[Any]):
    """Paths of clips and their phonemes, those with most phonemes first, one by one or in buckets of like length.

    Args:
        split: Name of a LibriSpeech split, such as train-clean-100, or of a list; or several.
        tokenizer: s3prl's text encoder over the phonemes.
        bucket_size: Clips an item; 1 gives single clips.
        lexicon: Text files, a word and its phonemes a line.
        path: Folder of LibriSpeech.
        csv_dir: Folder of lists, instead.
        ignored: s3prl's other corpus settings.

    Raises:
        DataError: No clips, or a word or phoneme that is in no list.
    """

    def __init__(
        self,
        split: str | Sequence[str],
        tokenizer: Any,
        bucket_size: int,
        lexicon: Sequence[str],
        path: str = "",
        csv_dir: str = "",
        **ignored: Any,
    ) -> None:
        phonemes = _read_lexicon(lexicon)
        known = set(tokenizer._vocab2idx)
        self.clips: list[Clip] = []
        places = [Path(csv_dir or path) / name for name in ([split] if isinstance(split, str) else split)]
        for file, words in chain.from_iterable(map(read_list if csv_dir else _transcripts, places)):
            missing = [word for word in words if word not in phonemes]
            if missing:
                raise DataError(f"{file}: {', '.join(missing[:5])} in none of {', '.join(lexicon)}.")
            spoken = [phoneme for word in words for phoneme in phonemes[word]]
            if unknown := sorted(set(spoken) - known):
                raise DataError(f"{file}: phonemes {', '.join(unknown)} are not in the vocabulary.")
            self.clips.append((str(file), tokenizer.encode(" ".join(spoken))))
        if not self.clips:
            raise DataError(f"{', '.join(map(str, places))}: no *.trans.txt; expected LibriSpeech as published.")
        self.clips.sort(key=lambda clip: -len(clip[1]))
        self.bucket_size = min(bucket_size, len(self.clips))

    def __getitem__(self, index: int) -> Clip | list[Clip]:
        if self.bucket_size == 1:
            return self.clips[index]
        start = min(index, len(self.clips) - self.bucket_size)
        return self.clips[start : start + self.bucket_size]

    def __len__(self) -> int:
        return len(self.clips)


def _read_lexicon(files: Sequence[str]) -> dict[str, list[str]]:
    phonemes: dict[str, list[str]] = {}
    for file in files:
        try:
            lines = Path(file).read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise DataError(
                f"{file}: cannot be read ({error.strerror}). s3prl keeps it in s3prl/downstream/ctc/lexicon; put it "
                "there, or name your own lists under downstream_expert.corpus.lexicon of a -c file."
            ) from error
        for word, *spoken in filter(None, map(str.split, lines)):
            phonemes.setdefault(word, spoken)
    return phonemes


def _transcripts(folder: Path) -> Iterator[tuple[Path, list[str]]]:
    """Sound file and words of every utterance."""
    for chapter in sorted(folder.glob("*/*/*.trans.txt")):
        for line in chapter.read_text(encoding="utf-8").splitlines():
            name, *words = line.split()
            yield chapter.parent / f"{name}.flac", words


def read_list(file: Path) -> Iterator[tuple[Path, list[str]]]:
    """Sound file and words of every row of a list with the columns wav_path and transcription."""
    with file.open(newline="", encoding="utf-8") as rows:
        for row in csv.DictReader(rows):
            yield Path(row["wav_path"]), row["transcription"].split()
