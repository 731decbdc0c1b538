"""A Garden client that speaks the bytes of the stock Go client, from raw sockets.

It is independent of the server: nothing of it is generated or shared. Its two kinds of connection are
those of the Go client: a plain call has a connection of its own and announces that it will close it; a
hijacked one reads the head as Go's `http.ReadResponse` does, then takes the socket, whatever the head
says about the body. A head after which Go would consider the connection closed is refused with Go's
words, so that a server that passes here passes there.
"""

import json
import os
import socket
import threading
import time
import urllib.parse

# No exchange may hang for ever; no test asserts how long one takes.
DEADLINE = 60

GO = "Go-http-client/1.1"


class Refused(Exception):
    """An error of the server, as its envelope says."""

    def __init__(self, status, envelope):
        super().__init__(f"{status}: {envelope}")
        self.status = status
        self.kind = envelope["Type"]
        self.message = envelope["Message"]
        self.envelope = envelope


class Broken(Exception):
    """An answer that the Go client does not accept, in its words."""


def go_json(value):
    """A value as Go's encoder writes it: compact, with a newline, some characters escaped."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text.encode() + b"\n"


class Reply:
    """One response."""

    def __init__(self, status, headers, body):
        self.status = status
        self.headers = headers
        self.body = body

    def json(self):
        """The body; an empty one is an error, as in Go."""
        if not self.body:
            raise Broken("EOF")
        return json.loads(self.body)


class Connection:
    """A socket with what was read of it and not used."""

    def __init__(self, address):
        if isinstance(address, str):
            self.socket = socket.socket(socket.AF_UNIX)
        else:
            self.socket = socket.socket(socket.AF_INET)
        self.socket.settimeout(DEADLINE)
        self.socket.connect(address)
        self.early = b""

    def send(self, data):
        self.socket.sendall(data)

    def receive(self):
        """Some bytes; none at the end."""
        if self.early:
            data, self.early = self.early, b""
            return data
        try:
            return self.socket.recv(65536)
        except ConnectionResetError:
            return b""

    def rest(self):
        """Everything up to the end."""
        pieces = []
        while piece := self.receive():
            pieces.append(piece)
        return b"".join(pieces)

    def head(self):
        """The status line and the headers of a response, with lower-case names."""
        data = b""
        while b"\r\n\r\n" not in data:
            piece = self.receive()
            if not piece:
                raise Broken("unexpected EOF" if data else "EOF")
            data += piece
        head, self.early = data.split(b"\r\n\r\n", 1)
        line, *fields = head.decode("latin-1").split("\r\n")
        version, status, *_ = line.split(" ", 2)
        headers = {}
        for field in fields:
            name, value = field.split(":", 1)
            headers[name.strip().lower()] = value.strip()
        return version, int(status), headers

    def body(self, headers):
        """The body of a plain response. Raises what Go raises when it is cut off."""
        if headers.get("transfer-encoding", "").lower() == "chunked":
            return self._chunked()
        if (length := headers.get("content-length")) is not None:
            return self._exactly(int(length))
        return self.rest()

    def _exactly(self, length):
        data = b""
        while len(data) < length:
            piece = self.receive()
            if not piece:
                raise Broken("unexpected EOF")
            data += piece
        self.early = data[length:] + self.early
        return data[:length]

    def _line(self):
        line = b""
        while not line.endswith(b"\r\n"):
            line += self._exactly(1)
        return line[:-2]

    def _chunked(self):
        body = []
        while size := int(self._line().split(b";")[0], 16):
            body.append(self._exactly(size))
            self._exactly(2)
        while self._line():
            pass
        return b"".join(body)

    def close(self):
        self.socket.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class Client:
    """Calls, as the Go client makes them."""

    def __init__(self, address=None):
        self.address = address or os.environ["GARDEN_CONFORMANCE_SOCKET"]
        self.connections = []

    def close(self):
        """Closes what was taken over and is still open."""
        for connection in self.connections:
            connection.close()

    # Plain calls.

    def request(self, method, target, body=None, content_type="application/json", extra=()):
        """The bytes of a plain request."""
        lines = [f"{method} {target} HTTP/1.1", "Host: api", f"User-Agent: {GO}"]
        if body is not None:
            lines.append(f"Content-Length: {len(body)}")
            if content_type:
                lines.append(f"Content-Type: {content_type}")
        lines += ["Accept-Encoding: gzip", "Connection: close", *extra]
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + (body or b"")

    def raw(self, data):
        """The response to these bytes."""
        with Connection(self.address) as connection:
            connection.send(data)
            _, status, headers = connection.head()
            return Reply(status, headers, connection.body(headers))

    def plain(self, method, target, value=None, **more):
        """The response to a request with a JSON value, whatever it is."""
        body = None if value is None else go_json(value)
        return self.raw(self.request(method, target, body, **more))

    def call(self, method, target, value=None, **more):
        """The value of a successful response; else `Refused`."""
        return checked(self.plain(method, target, value, **more))

    # Hijacked calls.

    def hijack(self, method, target, value=None, early=b""):
        """Takes a connection over; gives it and the status, or raises."""
        body = b"" if value is None else go_json(value)
        lines = [f"{method} {target} HTTP/1.1", "Host: api", f"User-Agent: {GO}"]
        if value is not None:
            lines.append(f"Content-Length: {len(body)}")
        if value is not None or "attaches" in target:
            lines.append("Content-Type: application/json")
        connection = Connection(self.address)
        self.connections.append(connection)
        try:
            connection.send("\r\n".join(lines).encode() + b"\r\n\r\n" + body + early)
            return connection, hijacked(connection)
        except BaseException:
            connection.close()
            raise

    def run(self, handle, spec, early=b"", outputs=True):
        """Starts a process as the Go client does: A, then B, then C."""
        spec = {"rlimits": {}, "image": {}} | spec
        target = f"/containers/{handle}/processes"
        connection, status = self.hijack("POST", target, spec, early)
        assert status == 201, status
        return Process(self, handle, connection, outputs)

    def attach(self, handle, process, outputs=True):
        """Attaches to a process."""
        connection, status = self.hijack("GET", f"/containers/{handle}/processes/{process}")
        assert status == 200, status
        return Process(self, handle, connection, outputs)


def checked(reply):
    """The value of a response that is a success, as the Go client sees it."""
    value = reply.json()
    if 200 <= reply.status < 300:
        return value
    raise Refused(reply.status, value)


def hijacked(connection):
    """Reads a head and decides as Go's ClientConn does."""
    version, status, headers = connection.head()
    close = "close" in headers.get("connection", "").lower()
    framed = "content-length" in headers or "transfer-encoding" in headers
    if version != "HTTP/1.1" or close or not framed or status in (100, 101):
        raise Broken("persistent connection closed")
    if not 200 <= status < 300:
        body = connection.body(headers)
        raise Refused(status, json.loads(body))
    return status


class Frames:
    """JSON values on a connection, however they are cut into packets."""

    def __init__(self, connection):
        self.connection = connection
        self.text = ""
        self.bytes = b""
        self.decoder = json.JSONDecoder()

    def next(self):
        """The next value; `Broken` at the end, as Go says it."""
        while True:
            stripped = self.text.lstrip()
            if stripped:
                try:
                    value, end = self.decoder.raw_decode(stripped)
                    self.text = stripped[end:]
                    return value
                except json.JSONDecodeError:
                    pass
            piece = self.connection.receive()
            if not piece:
                raise Broken("unexpected EOF" if stripped else "EOF")
            self.bytes += piece
            # A character may be cut in two.
            try:
                self.text += self.bytes.decode()
                self.bytes = b""
            except UnicodeDecodeError as error:
                self.text += self.bytes[: error.start].decode()
                self.bytes = self.bytes[error.start :]


class Process:
    """A process that runs, with its three connections."""

    def __init__(self, client, handle, connection, outputs):
        self.client = client
        self.handle = handle
        self.a = connection
        self.frames = Frames(connection)
        self.first = self.frames.next()
        self.id = self.first["process_id"]
        self.stream = self.first["stream_id"]
        assert isinstance(self.stream, str), self.first
        self.b = self.c = None
        if outputs:
            self.b, self.c = self.output("stdout"), self.output("stderr")

    def output(self, side):
        """Opens one of the outputs."""
        target = f"/containers/{self.handle}/processes/{self.id}/attaches/{self.stream}/{side}"
        connection, status = self.client.hijack("GET", target)
        assert status == 200, status
        return connection

    def frame(self, **members):
        """Sends a frame as the Go client writes it."""
        self.a.send(go_json({"process_id": self.id} | members))

    def stdin(self, text):
        self.frame(source=0, data=text)

    def end_stdin(self):
        self.frame(source=0)

    def signal(self, number):
        self.frame(signal=number)

    def window(self, columns, rows):
        self.frame(tty={"window_size": {"columns": columns, "rows": rows}})

    def wait(self):
        """The exit status, both outputs and the end of everything, in the order of the Go client."""
        # The Go client copies all the time: who waits for the exit alone would hold the process up.
        outputs = [Reader(connection) for connection in (self.b, self.c)]
        status = self.status()
        out, error = (reader.result() for reader in outputs)
        assert self.a.rest() == b"", "something follows the exit status"
        self.close()
        return status, out, error

    def status(self):
        """The final frame."""
        while True:
            frame = self.frames.next()
            if "error" in frame:
                raise Broken(f"connection: process error: {frame['error']}")
            if "exit_status" in frame:
                return frame["exit_status"]

    def until(self, text):
        """Reads standard output until this text was there."""
        seen = b""
        while text not in seen:
            piece = self.b.receive()
            assert piece, f"the output ended: {seen!r}"
            seen += piece
        return seen

    def close(self):
        for connection in (self.a, self.b, self.c):
            if connection:
                connection.close()


class Reader:
    """Reads a connection to its end, beside everything else."""

    def __init__(self, connection):
        self.data, self.failure = b"", None
        self.thread = threading.Thread(target=self._read, args=(connection,), daemon=True)
        self.thread.start()

    def _read(self, connection):
        try:
            self.data = connection.rest() if connection else b""
        except OSError as error:
            self.failure = error

    def result(self):
        """What was read."""
        self.thread.join()
        if self.failure:
            raise self.failure
        return self.data


def eventually(what, condition):
    """Waits until a condition holds, within the deadline."""
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, f"never: {what}"
        time.sleep(0.02)


def query(**parameters):
    """A query as Go encodes it: sorted, a space as `+`."""
    return urllib.parse.urlencode(sorted(parameters.items()))
