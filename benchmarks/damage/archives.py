"""Broken release archives from a local server: a clean error each, and the next try, with a whole one, works."""

from __future__ import annotations

import contextlib
import http.server
import io
import random
import struct
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import torch

from damage.records import in_process
from damage.tally import MODEL, Tally
from m2d_bench.encoders import zoo

NAME = f"{MODEL.removeprefix('random:')}-280101"
RELEASE = zoo.Release(NAME, "v0", "of this benchmark")


class Server(http.server.BaseHTTPRequestHandler):
    """Serves `content` whatever the path, ranges and If-Range too; `stop_at` breaks the connection once."""

    content = b""
    stop_at: int | None = None
    slow = False

    def do_GET(self) -> None:
        """Answers with the content, or what follows of it."""
        content, start = type(self).content, 0
        tag = f'"{hash(content)}"'
        if (asked := self.headers.get("Range")) and self.headers.get("If-Range", tag) == tag:
            start = int(asked.removeprefix("bytes=").rstrip("-"))
            if start >= len(content):
                self.send_error(416)
                return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.send_header("ETag", tag)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        stop_at, type(self).stop_at = type(self).stop_at, None
        with contextlib.suppress(OSError):
            for offset in range(start, len(content) if stop_at is None else stop_at, 1 << 16):
                self.wfile.write(content[offset : min(offset + (1 << 16), stop_at or len(content))])
                if type(self).slow:
                    threading.Event().wait(0.02)

    def log_message(self, format: str, *arguments: object) -> None:
        """Says nothing."""


@contextlib.contextmanager
def serving() -> Iterator[str]:
    """The address of a server."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def zipped(members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    """An archive of these members."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def weights() -> bytes:
    """A checkpoint in the released format."""
    file = io.BytesIO()
    torch.save({"model": {**zoo.read(MODEL).encoder, "norm_stats": torch.tensor([-7.1, 4.2])}}, file)
    return file.getvalue()


def patched(archive: bytes, offset: int, value: int) -> bytes:
    """The archive with a 16-bit field of its first local and central header set: 6 is the flags, 8 the method."""
    damaged = bytearray(archive)
    struct.pack_into("<H", damaged, offset, value)
    struct.pack_into("<H", damaged, damaged.index(b"PK\x01\x02") + offset + 2, value)
    return bytes(damaged)


def run(folder: Path, count: int, seed: int) -> Iterator[Tally]:
    """One tally over `models show` of a released name."""
    rng, tally = random.Random(seed), Tally("download: broken archives")
    pth = weights()
    whole = zipped({f"{NAME}/checkpoint-300.pth": pth})
    other = zipped({f"{NAME}/checkpoint-300.pth": pth, "read.me": b"a newer release"})
    readable = {
        "whole": whole,
        "deflated": zipped({f"{NAME}/checkpoint-300.pth": pth}, zipfile.ZIP_DEFLATED),
        "of macOS": zipped({f"{NAME}/checkpoint-300.pth": pth, f"__MACOSX/{NAME}/._checkpoint-300.pth": b"\0" * 100}),
        "of many levels": zipped({f"a/b/{NAME}/checkpoint-300.pth": pth, "a/b/LICENSE.pdf": b"text"}),
        "that leads outside": zipped({f"../../{NAME}/checkpoint-300.pth": pth}),
        "broken off and changed": other,
    }
    unreadable = {
        "encrypted": patched(whole, 6, 1),
        "of an unknown method": patched(whole, 8, 99),
        "with two .pth": zipped({f"{NAME}/checkpoint-300.pth": pth, f"{NAME}/checkpoint-200.pth": pth}),
        "without .pth": zipped({"read.me": b"text"}),
        "that is empty": zipped({}),
        "of no bytes": b"",
        "that is a web page": b"<html>404</html>" * 100,
        "cut short": whole[: len(whole) // 2],
        "with a damaged member": whole[: len(whole) // 2] + b"\xff" * 100 + whole[len(whole) // 2 + 100 :],
        "with a damaged directory": whole[:-60] + bytes(40) + whole[-20:],
        "with a .pth of text": zipped({f"{NAME}/checkpoint-300.pth": b"text"}),
    }
    cases = [*readable.items(), *unreadable.items()]
    while len(cases) < count:
        damaged = bytearray(whole)
        position = rng.randrange(len(damaged))
        damaged[position : position + 64] = rng.randbytes(64)
        cases.append((f"damaged at byte {position}", bytes(damaged)))
    with (
        serving() as address,
        mock.patch.dict(zoo.RELEASED, {NAME: RELEASE}),
        mock.patch.object(zoo, "_RELEASES", address),
    ):
        for number, (what, archive) in enumerate(cases[:count]):
            words = ["models", "show", NAME, "--cache", str(folder / str(number))]
            if what == "broken off and changed":
                Server.content, Server.stop_at = whole, len(whole) // 2
                in_process(words)
            Server.content = archive
            first = in_process(words)
            Server.content = whole
            second = in_process(words)
            faults = [*first.faults(), *second.faults()]
            if what in readable and first.code:
                faults.append(f"refused: {first.stderr[-200:]}")
            if what in unreadable and not first.code:
                faults.append("taken for whole")
            if second.code:
                faults.append(f"the next try fails: {second.stderr[-200:]}")
            tally.refused += first.code != 0
            tally.expect(not faults, f"archive {what}: {'; '.join(faults)}")
    tally.check(
        not list(folder.parent.glob(f"*/{NAME}")) and not list(folder.glob(NAME)), "unpacked outside its folder"
    )
    yield tally
