"""Where the Go server is odd: each oddity of the reference, as its advice column says."""

import io
import tarfile
import unittest

from case import Case
from wire import Broken, Connection, eventually, query


class Kept(Case):
    def test_unknown_routes_and_methods(self):
        self.assertEqual(self.client.plain("GET", "/nothing").status, 404)
        reply = self.client.plain("POST", "/ping", {})
        self.assertEqual(reply.status, 405)
        self.assertEqual(reply.headers["allow"], "GET")
        handle = self.create()
        for target in ("/containers/", f"/containers/{handle}/info/", f"//containers/{handle}/info"):
            self.assertEqual(self.client.plain("GET", target).status, 404, target)

    def test_unavailable_and_bad_requests_are_500(self):
        self.assertEqual(self.refused("POST", "/containers", [1]).status, 500)


class Fixed(Case):
    def test_nobody_reads_and_nothing_is_lost_or_stalled(self):
        handle = self.create()
        # Far more writes than the 4000 that the Go server keeps.
        script = "i=0; while [ $i -lt 9000 ]; do echo $i; i=$((i+1)); done"
        process = self.client.run(handle, {"path": "sh", "args": ["-c", script]}, outputs=False)
        self.assertEqual(process.status(), 0)
        lines = process.output("stdout").rest().split()
        self.assertEqual(lines, [str(number).encode() for number in range(9000)])

    def test_a_process_that_nobody_reads_is_not_stalled(self):
        handle = self.create()
        script = "dd if=/dev/zero bs=1M count=64 2>/dev/null"
        process = self.client.run(handle, {"path": "sh", "args": ["-c", script]}, outputs=False)
        self.assertEqual(process.status(), 0)

    def test_a_slow_reader_loses_nothing(self):
        handle = self.create()
        script = "dd if=/dev/zero bs=1M count=48 2>/dev/null"
        process = self.client.run(handle, {"path": "sh", "args": ["-c", script]})
        status, out, _ = process.wait()
        self.assertEqual((status, len(out)), (0, 48 << 20))

    def test_signals_are_read_after_the_end_of_input(self):
        handle = self.create()
        process = self.client.run(handle, {"path": "sh", "args": ["-c", "cat; echo up; sleep 1000"]})
        process.end_stdin()
        process.until(b"up")
        process.signal(0)
        # The shell waits for its child; the signal is the shell's.
        process.signal(1)
        self.assertIn(process.wait()[0], (137, 143))

    def test_signals_overtake_unread_input(self):
        handle = self.create()
        process = self.client.run(handle, {"path": "sleep", "args": ["1000"]})
        process.stdin("z" * (1 << 20))
        process.signal(1)
        self.assertEqual(process.wait()[0], 137)

    def test_unread_input_does_not_cost_the_exit_status(self):
        handle = self.create()
        for _ in range(20):
            process = self.client.run(handle, {"path": "true"}, outputs=False)
            process.stdin("u" * 1024)
            self.assertEqual(process.status(), 0)
            process.close()

    def test_no_grace_time_is_never(self):
        handle = self.create()
        self.assertEqual(self.client.call("PUT", f"/containers/{handle}/grace_time", 0), {})
        other = self.create(grace_time=1_000_000)
        eventually(
            "the other container is gone",
            lambda: other not in (self.client.call("GET", "/containers")["Handles"] or []),
        )
        self.assertIn(handle, self.client.call("GET", "/containers")["Handles"])

    def test_a_failed_stream_out_does_not_look_whole(self):
        handle = self.create()
        target = f"/containers/{handle}/files?{query(source='/not/there', user='root')}"
        try:
            reply = self.client.plain("GET", target)
        except Broken as error:
            self.assertEqual(str(error), "unexpected EOF")
        else:
            self.assertEqual(reply.status, 500)

    def test_bulk_calls_without_handles(self):
        for kind in ("bulk_info", "bulk_metrics"):
            self.assertEqual(self.client.call("GET", f"/containers/{kind}"), {})
            self.assertEqual(self.client.call("GET", f"/containers/{kind}?handles="), {})

    def test_names_that_no_url_can_carry_are_refused(self):
        for bad in ("a/b", "a?b", "a#b", "a%b", "a+b", "a,b", "../x", ".", "", "x" * 300):
            if bad:
                self.refused("POST", "/containers", self.spec(handle=bad))
        handle = self.create()
        for bad in ("a/b", "a+b", "a,b", "..", "a?b"):
            self.refused("POST", f"/containers/{handle}/processes", {"path": "true", "id": bad})

    def test_an_unknown_container_is_not_found_everywhere(self):
        place = "/containers/nobody"
        for method, target, value in (
            ("DELETE", "", None),
            ("GET", "/info", None),
            ("PUT", "/stop", {"kill": False}),
            ("GET", "/limits/cpu", None),
            ("GET", "/limits/disk", None),
            ("GET", "/limits/memory", None),
            ("GET", "/limits/bandwidth", None),
            ("GET", "/properties", None),
            ("GET", "/properties/a", None),
            ("PUT", "/properties/a", {"value": "b"}),
            ("DELETE", "/properties/a", None),
            ("PUT", "/grace_time", 1),
            ("GET", "/metrics", None),
            ("POST", "/net/in", {"host_port": 1}),
            ("POST", "/net/out", {}),
            ("POST", "/net/out/bulk", [{}]),
            ("GET", "/files?source=%2F&user=", None),
        ):
            error = self.refused(method, place + target, value)
            self.assertEqual((error.status, error.kind), (404, "ContainerNotFoundError"), target)
            self.assertEqual(error.envelope["Handle"], "nobody")
            self.assertEqual(error.message, "unknown handle: nobody")


class Processes(Case):
    """What sections 7 and 8 of the reference say beside the tables."""

    def test_several_clients_of_one_process(self):
        handle = self.create()
        script = "while [ ! -e /go ]; do sleep 0.05; done; echo now; exit 7"
        process = self.client.run(handle, {"path": "sh", "args": ["-c", script]})
        others = [self.client.attach(handle, process.id) for _ in range(3)]
        self.sh(handle, "touch /go")
        for one in (process, *others):
            self.assertEqual(one.wait(), (7, b"now\n", b""))

    def test_an_ended_process_is_remembered(self):
        handle = self.create()
        process = self.client.run(handle, {"path": "sh", "args": ["-c", "exit 8"], "id": "named"})
        self.assertEqual(process.id, "named")
        self.assertEqual(process.wait()[0], 8)
        self.assertEqual(self.client.attach(handle, "named").wait()[0], 8)

    def test_two_processes_of_one_id(self):
        handle = self.create()
        process = self.client.run(handle, {"path": "cat", "id": "named"})
        error = self.refused(
            "POST", f"/containers/{handle}/processes", {"path": "true", "id": "named"}
        )
        self.assertRegex(error.message, "already (in use|exists)")
        process.end_stdin()
        self.assertEqual(process.wait()[0], 0)

    def test_a_terminal(self):
        handle = self.create()
        spec = {"path": "sh", "args": ["-c", "stty size; echo err >&2"], "tty": {}}
        status, out, error = self.client.run(handle, spec).wait()
        self.assertEqual((status, error), (0, b""))
        self.assertEqual(out, b"24 80\r\nerr\r\n")
        spec = {
            "path": "sh",
            "args": ["-c", "trap 'stty size; exit 0' WINCH; echo up; while :; do sleep 0.1; done"],
            "tty": {"window_size": {"columns": 100, "rows": 30}},
        }
        process = self.client.run(handle, spec)
        process.until(b"up")
        process.window(123, 45)
        self.assertEqual(process.wait()[1].strip(), b"45 123")

    def test_users(self):
        handle = self.create()
        script = "id -u; id -g; echo $USER; echo $HOME; pwd"
        expected = {
            "vcap": "2000\n2000\nvcap\n/home/vcap\n/home/vcap\n",
            "2000:5": "2000\n5\n2000:5\n/home/vcap\n/home/vcap\n",
        }
        for user, text in expected.items():
            status, out, error = self.sh(handle, script, user=user)
            self.assertEqual((status, out.decode(), error), (0, text, b""), user)
        error = self.refused(
            "POST", f"/containers/{handle}/processes", {"path": "true", "user": "nobody-here"}
        )
        self.assertIn("no matching entries in passwd file", error.message)

    def test_a_pea_is_not_a_bind_mount(self):
        handle = self.create()
        error = self.refused(
            "POST",
            f"/containers/{handle}/processes",
            {"path": "true", "bind_mounts": [{"src_path": "/tmp", "dst_path": "/x"}]},
        )
        self.assertEqual(
            error.message,
            "Running a process with bind mounts and no image provided is not allowed",
        )

    def test_both_forms_of_an_image_at_once(self):
        error = self.refused("POST", "/containers", self.spec(rootfs=self.image))
        self.assertEqual(error.message, "Cannot provide both Image.URI and RootFSPath")


class Files(Case):
    def tar(self, **files):
        """A tar of these files."""
        data = io.BytesIO()
        with tarfile.open(fileobj=data, mode="w") as tar:
            for name, text in files.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(text)
                tar.addfile(entry, io.BytesIO(text))
        return data.getvalue()

    def put(self, handle, body, **parameters):
        target = f"/containers/{handle}/files?{query(**parameters)}"
        request = self.client.request("PUT", target, body, content_type="application/x-tar")
        return self.client.raw(request)

    def test_in_and_out(self):
        handle = self.create()
        body = self.tar(one=b"1", two=b"22")
        reply = self.put(handle, body, destination="/new/dir", user="vcap")
        self.assertEqual((reply.status, reply.body), (200, b"{}\n"))
        status, out, _ = self.sh(handle, "cat /new/dir/one /new/dir/two; stat -c %U /new/dir/one")
        self.assertEqual((status, out), (0, b"122vcap\n"))
        for source, names in (
            ("/new/dir", {"dir", "dir/one", "dir/two"}),
            ("/new/dir/", {".", "./one", "./two"}),
            ("/new/dir/two", {"two"}),
        ):
            target = f"/containers/{handle}/files?{query(source=source, user='')}"
            reply = self.client.plain("GET", target)
            self.assertEqual(reply.status, 200)
            with tarfile.open(fileobj=io.BytesIO(reply.body)) as tar:
                self.assertEqual({name.rstrip("/") for name in tar.getnames()}, names)

    def test_a_chunked_body(self):
        handle = self.create()
        tar = self.tar(chunked=b"c")
        target = f"/containers/{handle}/files?{query(destination='.', user='')}"
        head = f"PUT {target} HTTP/1.1\r\nHost: api\r\nTransfer-Encoding: chunked\r\n"
        head += "Content-Type: application/x-tar\r\nConnection: close\r\n\r\n"
        body = b"".join(
            b"%x\r\n%s\r\n" % (len(piece), piece)
            for piece in (tar[at : at + 700] for at in range(0, len(tar), 700))
        )
        reply = self.client.raw(head.encode() + body + b"0\r\n\r\n")
        self.assertEqual((reply.status, reply.body), (200, b"{}\n"))
        self.assertEqual(self.sh(handle, "cat ~/chunked")[1], b"c")

    def test_what_goes_wrong_is_told(self):
        handle = self.create()
        reply = self.put(handle, self.tar(a=b"a"), destination="/x", user="nobody-here")
        self.assertEqual(reply.status, 500)
        self.assertIn("error streaming in", reply.json()["Message"])
        reply = self.put(handle, self.tar(a=b"a"), destination="/", user="vcap")
        self.assertEqual(reply.status, 500)
        self.assertIn("Permission denied", reply.json()["Message"])
        whole = self.tar(a=b"a" * 5000)
        self.assertEqual(self.put(handle, whole[:3000], destination="/y", user="").status, 500)

    def test_a_reader_that_leaves_early(self):
        handle = self.create()
        self.sh(handle, "dd if=/dev/zero of=/big bs=1M count=32 2>/dev/null")
        target = f"/containers/{handle}/files?{query(source='/big', user='')}"
        for _ in range(5):
            with Connection(self.client.address) as connection:
                connection.send(self.client.request("GET", target))
                connection.receive()
        self.assertEqual(self.client.plain("GET", "/ping").status, 200)
        self.client.call("DELETE", f"/containers/{handle}")


class Connections(Case):
    def test_a_connection_that_is_used_again(self):
        with Connection(self.client.address) as connection:
            for _ in range(3):
                connection.send(b"GET /ping HTTP/1.1\r\nHost: api\r\n\r\n")
                _, status, headers = connection.head()
                self.assertEqual((status, connection.body(headers)), (200, b"{}\n"))

    def test_two_requests_at_once(self):
        request = b"GET /ping HTTP/1.1\r\nHost: api\r\n\r\n"
        with Connection(self.client.address) as connection:
            connection.send(request + request)
            for _ in range(2):
                _, status, headers = connection.head()
                self.assertEqual((status, connection.body(headers)), (200, b"{}\n"))

    def test_garbage_is_answered_or_closed(self):
        for garbage in (b"\x16\x03\x01\x02\x00", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n"):
            with Connection(self.client.address) as connection:
                connection.send(garbage)
                connection.socket.shutdown(1)
                connection.rest()
        self.assertEqual(self.client.plain("GET", "/ping").status, 200)

    def test_clients_that_vanish_at_each_byte(self):
        handle = self.create()
        body = b'{"path":"true"}\n'
        request = (
            f"POST /containers/{handle}/processes HTTP/1.1\r\nHost: api\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        ).encode() + body
        for length in range(len(request)):
            with Connection(self.client.address) as connection:
                connection.send(request[:length])
        self.assertEqual(self.sh(handle, "exit 2")[0], 2)


if __name__ == "__main__":
    unittest.main()
