"""A server of files that breaks off and changes as real ones do, a disk that is full, and archives."""

import errno
import http.server
import io
import shutil
import threading
import zipfile
from contextlib import contextmanager


class Server(http.server.BaseHTTPRequestHandler):
    """Serves files of a version, with ranges, and breaks off after `limit` bytes if set; `blind` to If-Range.

    `content` is that of every file, or of each by its name.
    """

    content, limit, ranges, version, blind = b"", None, [], None, False

    def do_GET(self):
        wanted = self.headers.get("Range")
        type(self).ranges.append(wanted)
        if not self.blind and self.headers.get("If-Range", self.version) != self.version:
            wanted = None
        start = int(wanted.split("=")[1].rstrip("-")) if wanted else 0
        content = self.content
        if isinstance(content, dict):
            content = content.get(self.path.split("?")[0].rpartition("/")[2])
        if content is None or start >= len(content):
            self.send_error(404 if content is None else 416)
            return
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(content) - start))
        if self.version:
            self.send_header("ETag", self.version)
        self.end_headers()
        self.wfile.write(content[start:][: self.limit])

    def log_message(self, *_):
        pass


@contextmanager
def serving():
    """The server's address."""
    Server.content, Server.limit, Server.ranges, Server.version, Server.blind = b"", None, [], None, False
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as httpd:
        threading.Thread(target=httpd.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()


def full_disk(open_file):
    """Path.open that writes no part of a download."""

    def opened(path, mode="r", *rest, **how):
        if path.suffix == ".part":
            raise OSError(errno.ENOSPC, "No space left on device")
        return open_file(path, mode, *rest, **how)

    return opened


def disk(free):
    """What shutil.disk_usage tells of a disk with so many bytes free."""
    return shutil._ntuple_diskusage(1 << 30, 0, free)


def zip_of(entries, **how):
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", **how) as file:
        for name, content in entries.items():
            file.writestr(name, content)
    return archive.getvalue()


def with_flag(archive, offsets, value, size=2):
    """An archive whose headers, local and central, say something else."""
    archive = bytearray(archive)
    for magic, offset in zip((b"PK\3\4", b"PK\1\2"), offsets, strict=True):
        start = archive.index(magic) + offset
        archive[start : start + size] = value.to_bytes(size, "little")
    return bytes(archive)
