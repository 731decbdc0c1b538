"""Clients that no server should have: slow, silent, gone, greedy.

After each of them the server answers others, holds no more files than before, and no more memory than
it may. GARDEN_CONFORMANCE_SCALE makes everything larger: 1 is for every build, 20 is 10 000 idle
connections and a gigabyte of input.
"""

import contextlib
import os
import resource
import socket
import struct
import threading
import time
import unittest

from case import Case
from wire import DEADLINE, Connection, go_json

SCALE = float(os.environ.get("GARDEN_CONFORMANCE_SCALE", "1"))
PID = int(os.environ["GARDEN_CONFORMANCE_PID"])
MIB = 1 << 20


def status(field):
    """A number of the server's own status, in kilobytes for memory."""
    with open(f"/proc/{PID}/status", encoding="utf-8") as lines:
        for line in lines:
            if line.startswith(field + ":"):
                return int(line.split()[1])
    raise AssertionError(f"no {field}")


def files():
    return len(os.listdir(f"/proc/{PID}/fd"))


def eventually(what, true):
    """Waits for what must come."""
    deadline = time.monotonic() + DEADLINE
    while not true():
        if time.monotonic() > deadline:
            raise AssertionError(f"not in time: {what}")
        time.sleep(0.01)


class Abuse(Case):
    """One kind of client each."""

    def setUp(self):
        super().setUp()
        self.address = os.environ["GARDEN_CONFORMANCE_SOCKET"]
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        self.addCleanup(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        self.most = hard
        self.client.call("GET", "/ping")
        self.before = files()

    def well(self):
        """Others are served, and nothing of the bad ones stays."""
        self.client.call("GET", "/ping")
        eventually("files are closed", lambda: files() <= self.before + 2)

    def connect(self):
        plain = socket.socket(socket.AF_UNIX)
        plain.settimeout(DEADLINE)
        plain.connect(self.address)
        return plain

    def exchanges(self, handle):
        """Requests of each kind that change nothing, as bytes."""

        def request(method, target, value=None):
            body = b"" if value is None else go_json(value)
            head = f"{method} {target} HTTP/1.1\r\nHost: api\r\n"
            if body:
                head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
            return head.encode() + b"\r\n" + body

        run = {"path": "true", "rlimits": {}, "image": {}}
        yield request("GET", "/ping")
        yield request("POST", "/containers", {"handle": "a/b", "image": {}})
        yield request("PUT", f"/containers/{handle}/properties/k", {"value": "v"})
        yield request("POST", f"/containers/{handle}/processes", run) + b'{"source":0,"data":"x"}'
        yield request("GET", f"/containers/{handle}/processes/nobody")
        yield request("GET", f"/containers/{handle}/processes/p/attaches/7/stdout")
        yield request("GET", f"/containers/{handle}/files?source=/etc/&user=root")

    def test_clients_that_vanish_at_each_byte(self):
        handle = self.create()
        step = 1 if SCALE > 1 else 5
        for data in self.exchanges(handle):
            for length in [*range(0, len(data), step), len(data)]:
                one = self.connect()
                one.sendall(data[:length])
                if length % 2:
                    one.shutdown(socket.SHUT_WR)
                one.close()
            # And while it is answered.
            for length in range(0, 200, 1 if SCALE > 1 else 20):
                one = self.connect()
                one.sendall(data)
                if length:
                    with contextlib.suppress(ConnectionError):
                        one.recv(length)
                one.close()
        self.assertEqual(self.sh(handle, "echo well")[1], b"well\n")
        self.destroy(handle)
        self.well()

    def test_idle_connections(self):
        count = min(int(500 * SCALE), self.most - 200)
        memory = status("VmRSS")
        idle = [self.connect() for _ in range(count)]
        for one in idle[::2]:
            one.sendall(b"GET /pi")
        self.client.call("GET", "/ping")
        self.client.call("GET", "/containers")
        grown = status("VmRSS") - memory
        self.assertLess(grown, 20_000 + count * 32, f"{grown} KiB for {count} connections")
        for one in idle:
            one.close()
        self.well()

    def test_heads_that_come_slowly(self):
        slow = [self.connect() for _ in range(int(50 * SCALE))]
        for byte in b"GET /ping HTTP/1.1\r\nHost: api\r\nConnection: close\r\n\r\n":
            for one in slow:
                one.sendall(bytes([byte]))
            if byte == 0x20:
                self.client.call("GET", "/ping")
        for one in slow:
            self.assertTrue(one.recv(100).startswith(b"HTTP/1.1 200"))
            one.close()
        self.well()

    def test_a_client_that_only_half_closes_is_answered(self):
        one = Connection(self.address)
        one.send(b"GET /ping HTTP/1.1\r\nHost: api\r\nConnection: close\r\n\r\n")
        one.socket.shutdown(socket.SHUT_WR)
        self.assertEqual(one.head()[1], 200)
        one.socket.close()
        self.well()

    def test_a_frame_of_any_size_is_handed_on(self):
        handle = self.create()
        size = int(16 + 48 * SCALE) * MIB if SCALE > 1 else 16 * MIB
        process = self.client.run(handle, {"path": "sh", "args": ["-c", "wc -c"]})
        memory = status("VmRSS")
        most = memory
        connection = process.a
        connection.send(b'{"process_id":"p","source":0,"data":"')
        piece = b"0123456789abcde\\n" * (MIB // 16)
        for _ in range(size // MIB):
            connection.send(piece)
            most = max(most, status("VmRSS"))
        connection.send(b'"}{"process_id":"p","source":0}')
        code, out, _ = process.wait()
        self.assertEqual((code, int(out)), (0, size))
        self.assertLess((most - memory) // 1024, 64, "MiB")
        self.destroy(handle)

    def test_input_that_nobody_reads_is_left_in_the_socket(self):
        handle = self.create()
        process = self.client.run(handle, {"path": "sleep", "args": ["60"]})
        memory = status("VmRSS")
        process.a.socket.settimeout(1)
        piece = b'{"process_id":"p","source":0,"data":"' + b"x" * MIB + b'"}'
        with self.assertRaises(TimeoutError):
            for _ in range(int(64 * max(1, SCALE))):
                process.a.send(piece)
        self.assertLess((status("VmRSS") - memory) // 1024, 64, "MiB")
        process.a.socket.close()
        self.destroy(handle)

    def test_output_that_nobody_reads_stalls_nothing(self):
        handle = self.create()
        memory = status("VmRSS")
        spec = {"path": "sh", "args": ["-c", f"head -c {int(32 * SCALE)}m /dev/zero; echo done >/end"]}
        process = self.client.run(handle, spec)
        self.client.call("GET", "/ping")
        self.assertLess((status("VmRSS") - memory) // 1024, 128, "MiB")
        for stream in (process.a, process.b, process.c):
            stream.socket.close()
        self.assertEqual(self.sh(handle, "echo well")[1], b"well\n")
        self.destroy(handle)

    def test_a_frame_without_an_end_is_cut(self):
        handle = self.create()
        process = self.client.run(handle, {"path": "sleep", "args": ["60"]})
        sent = 0
        with contextlib.suppress(ConnectionError, TimeoutError):
            process.a.send(b'{"process_id":"')
            while sent < 512:
                process.a.send(b"x" * MIB)
                sent += 1
        self.assertLess(sent, 128, "MiB were taken")
        self.destroy(handle)

    def test_what_is_no_http(self):
        for data in [
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"GET /ping\r\n\r\n",
            b"GET /ping HTTP/9.9\r\n\r\n",
            b"GET " + b"/x" * 200_000 + b" HTTP/1.1\r\n\r\n",
            b"GET /ping HTTP/1.1\r\nA: " + b"x" * 600_000 + b"\r\n\r\n",
            b"GET /ping HTTP/1.1\r\n" + b"A: b\r\n" * 5_000 + b"\r\n",
            b"GET /ping HTTP/1.1\r\nA : b\r\n\r\n",
            b"GET /ping HTTP/1.1\r\nA: \x00\r\n\r\n",
            b"POST /containers HTTP/1.1\r\nHost: api\r\nContent-Length: -1\r\n\r\n",
            b"POST /containers HTTP/1.1\r\nHost: api\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n{}",
            b"POST /containers HTTP/1.1\r\nHost: api\r\nContent-Length: 99999999999999999999\r\n\r\n",
            b"POST /containers HTTP/1.1\r\nHost: api\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
            b"POST /containers HTTP/1.1\r\nHost: api\r\nTransfer-Encoding: gzip\r\n\r\n",
            b"POST /containers/h/processes HTTP/1.1\r\nContent-Length: 18446744073709551615\r\n\r\n",
            b"POST /containers/h/processes HTTP/1.1\r\nContent-Length: x\r\n\r\n",
            b"POST /containers/h/processes HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            bytes(range(256)) * 100,
            b"\r\n" * 50_000,
        ]:
            one = self.connect()
            with contextlib.suppress(ConnectionError):
                one.sendall(data)
                one.shutdown(socket.SHUT_WR)
            answer = b""
            with contextlib.suppress(ConnectionError):
                while piece := one.recv(65536):
                    answer += piece
            one.close()
            if answer:
                first = answer.split(b"\r\n", 1)[0]
                self.assertRegex(first, rb"^HTTP/1\.[01] (4\d\d|500) ", data[:80])
        self.well()

    def test_requests_in_one_packet_are_all_answered(self):
        one = Connection(self.address)
        count = 50
        one.send(b"GET /ping HTTP/1.1\r\nHost: api\r\n\r\n" * count)
        one.socket.shutdown(socket.SHUT_WR)
        self.assertEqual(one.rest().count(b"HTTP/1.1 200 OK"), count)
        one.socket.close()

    def test_connections_that_are_reset(self):
        handle = self.create()
        for data in self.exchanges(handle):
            for _ in range(int(10 * SCALE)):
                one = self.connect()
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                one.sendall(data)
                one.close()
        self.destroy(handle)
        self.well()

    def test_many_at_once(self):
        failures = []

        def ask():
            try:
                for _ in range(int(10 * SCALE)):
                    self.client.call("GET", "/containers")
            except Exception as error:  # pylint: disable=broad-except
                failures.append(error)

        threads = [threading.Thread(target=ask) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(failures, [])
        self.well()


if __name__ == "__main__":
    unittest.main()
