"""A server of its own, its API, and an image: what the measuring scripts beside it share."""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import tarfile
import tempfile
import time

TOP = pathlib.Path(__file__).resolve().parent.parent.parent
GARDEN = TOP / "target/release/garden"


def ended(number, _):
    """What was made is taken away on the way out, as after an error."""
    raise SystemExit(128 + number)


signal.signal(signal.SIGTERM, ended)
signal.signal(signal.SIGHUP, ended)


def make_root(root):
    """A root filesystem of busybox, with a user vcap."""
    busybox = shutil.which("busybox")
    if busybox is None:
        raise SystemExit("bars: no busybox on this host: run ci/setup")
    (root / "bin").mkdir()
    (root / "etc").mkdir()
    shutil.copy(busybox, root / "bin/busybox")
    for applet in ("cat", "sh", "sleep", "true"):
        (root / "bin" / applet).symlink_to("busybox")
    (root / "etc/passwd").write_text(
        "root:x:0:0::/root:/bin/sh\nvcap:x:2000:2000::/home/vcap:/bin/sh\n"
    )


def make_image(path):
    """The same, as a tar."""
    with tempfile.TemporaryDirectory() as base:
        make_root(pathlib.Path(base))
        with tarfile.open(path, "w") as tar:
            tar.add(base, arcname=".")


class Api:
    """The Garden API, as far as it is needed here."""

    def __init__(self, path):
        self.path = str(path)

    def exchange(self, method, target, body, until):
        """Sends a request; returns the reply and the ms until it was there."""
        data = b"" if body is None else json.dumps(body).encode() + b"\n"
        head = f"{method} {target} HTTP/1.1\r\nHost: api\r\nContent-Length: {len(data)}\r\n"
        head += "\r\n" if until else "Connection: close\r\n\r\n"
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(self.path)
            begun = time.perf_counter()
            connection.sendall(head.encode() + data)
            reply = b""
            while not (until and until in reply):
                piece = connection.recv(65536)
                if not piece:
                    break
                reply += piece
            took = (time.perf_counter() - begun) * 1000
        if b" 20" not in reply[:13] or (until and until not in reply):
            raise SystemExit(f"bars: {method} {target} failed: {reply!r}")
        return reply, took

    def call(self, method, target, body=None):
        """The ms that a call took."""
        return self.exchange(method, target, body, None)[1]

    def run(self, handle, spec):
        """The ms from the request to the exit status."""
        return self.exchange("POST", f"/containers/{handle}/processes", spec, b"exit_status")[1]

    def stream_in(self, handle, destination, tar):
        """Sends a file; the seconds that it took."""
        target = f"/containers/{handle}/files?user=root&destination={destination}"
        head = f"PUT {target} HTTP/1.1\r\nHost: api\r\nConnection: close\r\n"
        head += f"Content-Length: {tar.stat().st_size}\r\n\r\n"
        with socket.socket(socket.AF_UNIX) as connection, tar.open("rb") as file:
            connection.connect(self.path)
            begun = time.perf_counter()
            connection.sendall(head.encode())
            connection.sendfile(file)
            reply = connection.recv(65536)
            took = time.perf_counter() - begun
        if b" 200" not in reply[:13]:
            raise SystemExit(f"bars: stream-in failed: {reply!r}")
        return took


class Server:
    """A server with a directory of its own; what it made is gone with it."""

    def __init__(self, store):
        self.tag = f"bars{os.getpid()}"
        self.store = store

    def __enter__(self):
        self.stack = contextlib.ExitStack()
        self.place = pathlib.Path(
            self.stack.enter_context(tempfile.TemporaryDirectory(dir="/dev/shm"))
        )
        path = self.place / "s.sock"
        arguments = ["server", "--socket", path, "--runtime-dir", self.place / "run"]
        arguments += ["--store", self.store / "store", "--tag", self.tag, "--network", "none"]
        environment = os.environ | {"GARDEN_LOG": "warn"}
        # Not a member of our group: what ends the script must not end it before its containers.
        self.process = subprocess.Popen([GARDEN, *arguments], env=environment, process_group=0)
        self.api = Api(path)
        while not path.exists() and self.process.poll() is None:
            time.sleep(0.01)
        return self

    def settle(self):
        """Waits until what ended is cleaned up."""
        self.garden("teardown", "wait")

    def garden(self, *arguments):
        environment = os.environ | {"GARDEN_SOCKET": str(self.place / "s.sock")}
        command = [GARDEN, *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    def __exit__(self, *_):
        # Whatever is left after a failure, and what is still being cleaned up.
        for handle in self.garden("ls", "--quiet").stdout.split():
            self.garden("rm", handle)
        self.settle()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait()
        for parent in pathlib.Path("/sys/fs/cgroup").glob(f"**/garden-{self.tag}"):
            for group in [*parent.glob("*/"), parent]:
                with contextlib.suppress(OSError):
                    group.rmdir()
        self.stack.close()


@contextlib.contextmanager
def disk(kind, size, directory="/var/tmp"):
    """A file system of its own, of so many bytes; gives where it is mounted. Nothing that was removed
    before slows it down, as it does on an ext4 without journal."""
    with tempfile.TemporaryDirectory(dir=directory) as base:
        image, place = pathlib.Path(base) / "disk.img", pathlib.Path(base) / "disk"
        with image.open("wb") as file:
            file.truncate(size)
        subprocess.run([f"mkfs.{kind}", "-q", image], check=True, stdout=subprocess.DEVNULL)
        place.mkdir()
        subprocess.run(["mount", "-o", "loop,noatime", image, place], check=True)
        try:
            os.sync()
            yield place
        finally:
            # podman mounts something in its store, and leaves it there.
            subprocess.run(["umount", "--recursive", place], check=True)
