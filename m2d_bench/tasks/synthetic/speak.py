"""Speaks texts with eSpeak NG; run as a script in a process of its own, by `_espeak`.

eSpeak keeps state from one utterance to the next, so the same word twice differs: only a fresh process that speaks the
same texts in the same order gives the same samples. Standard library alone, so that nothing else can have run before.
Reads JSON from stdin: {"library": path, "utterances": [[voice, rate, pitch, text], …]}, and works in the folder that
holds espeak-ng-data. Writes for each utterance the number of samples (uint32) and the samples (int16), native order.
"""

from __future__ import annotations

import ctypes
import json
import os
import struct
import sys

SAMPLE_RATE = 22050
SYNCHRONOUS = 2  # espeak_AUDIO_OUTPUT: samples go to the callback, and Synth returns when all are made
CHARACTERS, UTF8 = 1, 1
RATE, PITCH = 1, 3  # espeak_PARAMETER; words a minute, and 0–100 with 50 as the voice's own


def main() -> None:
    """Speak every utterance of the request on stdin, in order."""
    request = json.load(sys.stdin)
    library = ctypes.CDLL(request["library"])
    samples = bytearray()

    def collect(wave: int | None, count: int, events: int | None) -> int:
        if wave and count > 0:
            samples.extend(ctypes.string_at(wave, 2 * count))
        return 0

    callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)(collect)

    # The path is given as "." because eSpeak cuts longer ones off at 160 characters.
    if library.espeak_Initialize(SYNCHRONOUS, 0, b".", 0) != SAMPLE_RATE:
        sys.exit("eSpeak NG did not start: espeak-ng-data is missing or of another version.")
    library.espeak_ng_SetRandSeed(ctypes.c_long(1))  # breath is noise, otherwise seeded by the clock
    library.espeak_SetSynthCallback(callback)
    for voice, rate, pitch, text in request["utterances"]:
        # eSpeak takes a variant it does not know for the plain voice, in silence.
        variant = os.path.join("espeak-ng-data", "voices", "!v", voice.partition("+")[2])
        if library.espeak_SetVoiceByName(voice.encode()) != 0 or not os.path.exists(variant):
            sys.exit(f"eSpeak NG has no voice {voice!r}.")
        library.espeak_SetParameter(RATE, rate, 0)
        library.espeak_SetParameter(PITCH, pitch, 0)
        samples.clear()
        encoded = text.encode()
        if library.espeak_Synth(encoded, len(encoded) + 1, 0, CHARACTERS, 0, UTF8, None, None) != 0 or not samples:
            sys.exit(f"eSpeak NG could not speak {text!r} with the voice {voice!r}.")
        sys.stdout.buffer.write(struct.pack("=I", len(samples) // 2) + samples)


if __name__ == "__main__":
    main()
