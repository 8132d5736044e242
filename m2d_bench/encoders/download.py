"""Downloads into the cache: with progress, resumed where they broke off, checked by size."""

from __future__ import annotations

import http.client
import os
import shutil
import urllib.error
import urllib.request
from pathlib import Path

from m2d_bench.errors import CheckpointError
from m2d_bench.progress import bar

_BLOCK = 1 << 20


def fetch(url: str, path: Path, *, manual: str) -> None:
    """Downloads a file unless it is there; a part left by an earlier try is continued.

    Args:
        url: Address.
        path: Where the file appears, whole or not at all; the part lies beside it as `.part`.
        manual: What a person without network can do instead, ends the error message.

    Raises:
        CheckpointError: No connection, an HTTP error, or fewer bytes than announced.
    """
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            resumed = response.status == 206
            announced = response.headers.get("Content-Length")
            total = int(announced) + (have if resumed else 0) if announced else None
            with (
                part.open("ab" if resumed else "wb") as file,
                bar(path.name, total, "bytes", done=file.tell()) as advance,
            ):
                while block := response.read(_BLOCK):
                    file.write(block)
                    advance(len(block))
    except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
        if getattr(error, "code", None) == 416:  # the part is already whole, or of another file
            part.unlink()
            fetch(url, path, manual=manual)
            return
        raise CheckpointError(f"{url} cannot be downloaded: {error}. Without a network, {manual}.") from error
    size = part.stat().st_size
    if total is not None and size != total:
        raise CheckpointError(f"{url}: {size} of {total} bytes came; run again to go on from there. Or {manual}.")
    shutil.move(os.fspath(part), path)
