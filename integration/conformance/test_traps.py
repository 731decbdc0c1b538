"""What a server that is not written in Go gets wrong: the checklist of the reference, by number."""

import json
import unittest

from case import LIMITS, Case
from wire import Broken, Connection, Refused, checked, go_json, hijacked


class Traps(Case):
    def head_of(self, method, target, value=None):
        body = b"" if value is None else go_json(value)
        with Connection(self.client.address) as connection:
            request = f"{method} {target} HTTP/1.1\r\nHost: api\r\n"
            if value is not None:
                request += f"Content-Length: {len(body)}\r\n"
            connection.send(request.encode() + b"\r\n" + body)
            return connection.head()

    def test_01_the_head_of_a_hijacked_connection(self):
        handle = self.create()
        target = f"/containers/{handle}/processes"
        version, status, headers = self.head_of("POST", target, {"path": "true"})
        self.assertEqual((version, status), ("HTTP/1.1", 201))
        self.assertEqual(headers["transfer-encoding"], "chunked")
        self.assertNotIn("connection", headers)
        self.assertNotIn("upgrade", headers)

    def test_02_an_error_on_a_hijacked_route_keeps_its_type(self):
        for method, target, value in (
            ("POST", "/containers/nobody/processes", {"path": "true"}),
            ("GET", "/containers/nobody/processes/none", None),
        ):
            _, status, headers = self.head_of(method, target, value)
            self.assertEqual(status, 404)
            self.assertIn("content-length", headers)
            self.assertNotIn("connection", headers)
            with self.assertRaises(Refused) as caught:
                self.client.hijack(method, target, value)
            self.assertEqual(caught.exception.kind, "ContainerNotFoundError")
        handle = self.create()
        with self.assertRaises(Refused) as caught:
            self.client.attach(handle, "none")
        self.assertEqual(caught.exception.kind, "ProcessNotFoundError")
        self.assertEqual(caught.exception.envelope["ProcessID"], "none")

    def test_03_bodies_are_not_framed(self):
        handle = self.create()
        self.assertEqual(self.sh(handle, "echo out; echo err >&2"), (0, b"out\n", b"err\n"))

    def test_04_heads_do_not_wait_for_output(self):
        handle = self.create()
        # `run` returns only when both outputs have heads; this process never writes.
        process = self.client.run(handle, {"path": "sleep", "args": ["1000"]})
        process.signal(1)
        self.assertEqual(process.wait(), (137, b"", b""))

    def test_05_outputs_end_with_the_process(self):
        handle = self.create()
        # A grandchild holds the outputs: the exit is told, and they end all the same.
        status, out, _ = self.sh(handle, "sleep 1000 & echo started")
        self.assertEqual((status, out), (0, b"started\n"))

    def test_06_a_late_reader_gets_what_a_short_process_wrote(self):
        handle = self.create()
        process = self.client.run(
            handle, {"path": "sh", "args": ["-c", "echo out; echo err >&2"]}, outputs=False
        )
        self.assertEqual(process.status(), 0)
        self.assertEqual(process.output("stdout").rest(), b"out\n")
        self.assertEqual(process.output("stderr").rest(), b"err\n")

    def test_07_the_stream_id_is_a_string(self):
        handle = self.create()
        process = self.client.run(handle, {"path": "true"})
        self.assertIsInstance(process.first["stream_id"], str)
        self.assertIsInstance(process.first["process_id"], str)
        self.assertEqual(process.wait()[0], 0)

    def test_08_zero_is_not_absent(self):
        handle = self.create()
        process = self.client.run(handle, {"path": "cat"})
        process.a.send(b'{"source":0,"data":"x"}')
        process.until(b"x")
        process.a.send(b'{"signal":0}')
        self.assertEqual(process.wait()[0], 143)
        process = self.client.run(handle, {"path": "true"})
        frame = process.frames.next()
        self.assertEqual(frame["exit_status"], 0)

    def test_09_frames_have_no_length_limit(self):
        handle = self.create()
        process = self.client.run(handle, {"path": "wc", "args": ["-c"]})
        process.stdin("y" * (8 << 20))
        process.end_stdin()
        self.assertEqual(process.wait()[1].strip(), str(8 << 20).encode())

    def test_10_what_comes_with_the_request_is_not_lost(self):
        handle = self.create()
        early = go_json({"source": 0, "data": "early\n"}) + go_json({"source": 0})
        process = self.client.run(handle, {"path": "cat"}, early=early)
        self.assertEqual(process.wait(), (0, b"early\n", b""))

    def test_11_a_success_has_a_value(self):
        handle = self.create()
        for method, target, value in (
            ("GET", "/ping", None),
            ("PUT", f"/containers/{handle}/stop", {"kill": True}),
            ("PUT", f"/containers/{handle}/grace_time", 3_600_000_000_000),
            ("PUT", f"/containers/{handle}/properties/a", {"value": "b"}),
            ("DELETE", f"/containers/{handle}/properties/a", None),
            ("DELETE", f"/containers/{handle}", None),
        ):
            reply = self.client.plain(method, target, value)
            self.assertEqual((reply.status, reply.body), (200, b"{}\n"), target)

    def test_12_enums_and_durations_are_numbers(self):
        for wrong in (
            {"grace_time": "5m"},
            {"bind_mounts": [{"src_path": "/", "dst_path": "/x", "mode": "RW"}]},
            {"netout_rules": [{"protocol": "tcp"}]},
            {"limits": LIMITS | {"memory_limits": {"limit_in_bytes": -1}}},
            {"limits": LIMITS | {"memory_limits": {"limit_in_bytes": 1.5}}},
        ):
            error = self.refused("POST", "/containers", self.spec(**wrong))
            self.assertEqual((error.status, error.kind), (500, ""), wrong)
        handle = self.create(
            grace_time=3_600_000_000_000,
            bind_mounts=[{"src_path": "/tmp", "dst_path": "/x", "mode": 0, "origin": 0}],
            limits=LIMITS | {"disk_limits": {"scope": 1}},
        )
        self.assertEqual(self.sh(handle, "test -d /x")[0], 0)

    def test_13_unknown_members_and_nulls_are_accepted(self):
        handle = self.create(
            unknown={"a": [1]},
            env=None,
            bind_mounts=None,
            properties=None,
            netin=None,
            netout_rules=None,
            network=None,
            grace_time=None,
        )
        spec = {"path": "sh", "args": ["-c", "exit 5"], "env": None, "tty": None, "more": 1}
        self.assertEqual(self.client.run(handle, spec | {"rlimits": None}).wait()[0], 5)

    def test_14_empty_limits_of_a_process_are_not_absent(self):
        handle = self.create(limits=LIMITS | {"memory_limits": {"limit_in_bytes": 32 << 20}})
        script = "cat /proc/self/cgroup"
        pea = {"path": "sh", "args": ["-c", script], "image": {"uri": self.image}}
        nested = self.client.run(handle, pea).wait()[1]
        own = self.client.run(
            handle, pea | {"limits": {"cpu_limits": {}, "memory_limits": {}}}
        ).wait()[1]
        depth = {len(line.split(b"/")) for line in own.splitlines()}
        deeper = {len(line.split(b"/")) for line in nested.splitlines()}
        self.assertLess(max(depth), max(deeper), (own, nested))

    def test_15_an_empty_image_is_no_pea(self):
        handle = self.create()
        self.assertEqual(self.sh(handle, "touch /mark")[0], 0)
        spec = {"path": "test", "args": ["-e", "/mark"], "image": {}}
        self.assertEqual(self.client.run(handle, spec).wait()[0], 0)

    def test_16_metrics_are_whole_numbers(self):
        handle = self.create()
        self.sh(handle, "i=0; while [ $i -lt 2000 ]; do i=$((i+1)); done")
        text = self.client.plain("GET", f"/containers/{handle}/metrics").body.decode()

        def refuse(number):
            raise AssertionError(f"a float: {number}")

        metrics = json.loads(text, parse_float=refuse)
        self.assertGreater(metrics["Age"], 0)
        self.assertNotIn("-", text)

    def test_17_no_error_is_null(self):
        handle = self.create()
        for kind in ("bulk_info", "bulk_metrics"):
            reply = self.client.call("GET", f"/containers/{kind}?handles={handle}")
            self.assertIsNone(reply[handle]["Err"])

    def test_18_an_unknown_handle_fails_alone(self):
        handle = self.create()
        reply = self.client.call("GET", f"/containers/bulk_metrics?handles=x,{handle},y")
        self.assertIsNone(reply[handle]["Err"])
        self.assertEqual(reply["x"]["Err"]["Type"], "ContainerNotFoundError")

    def test_20_a_malformed_request_gets_the_envelope(self):
        for body in (b"{", b'{"handle":1}\n', b"[]\n", b""):
            reply = self.client.raw(self.client.request("POST", "/containers", body))
            with self.assertRaises(Refused) as caught:
                checked(reply)
            self.assertEqual((caught.exception.status, caught.exception.kind), (500, ""))
            self.assertTrue(caught.exception.message)

    def test_21_segments_are_decoded_after_they_are_matched(self):
        handle = self.create()
        place = f"/containers/{handle}/properties"
        self.client.call("PUT", f"{place}/a%2Fb:c", {"value": "1"})
        self.assertEqual(self.client.call("GET", place)["a/b:c"], "1")

    def test_22_an_early_failure_reaches_an_uploading_client(self):
        handle = self.create()
        target = f"/containers/{handle}/files?destination=%2Fx&user=nobody-has-this-name"
        body = bytes(4 << 20)
        for _ in range(10):
            request = self.client.request("PUT", target, body, content_type="application/x-tar")
            with self.assertRaises(Refused) as caught:
                checked(self.client.raw(request))
            self.assertIn("nobody-has-this-name", caught.exception.message)

    def test_24_a_client_that_leaves_kills_nothing(self):
        handle = self.create()
        script = "while [ ! -e /go ]; do sleep 0.05; done; exit 9"
        process = self.client.run(handle, {"path": "sh", "args": ["-c", script]})
        process.close()
        self.sh(handle, "touch /go")
        self.assertEqual(self.client.attach(handle, process.id).wait()[0], 9)

    def test_25_out_of_memory_is_known_before_the_exit(self):
        handle = self.create(limits=LIMITS | {"memory_limits": {"limit_in_bytes": 16 << 20}})
        # `tail` keeps what it reads.
        status = self.sh(handle, "tail /dev/zero")[0]
        events = self.client.call("GET", f"/containers/{handle}/info")["Events"]
        self.assertEqual(status, 137)
        self.assertIn("Out of memory", events or [])

    def test_26_answers_are_not_packed(self):
        reply = self.client.plain("GET", "/capacity")
        self.assertNotIn("content-encoding", reply.headers)

    def test_28_content_types_do_not_matter(self):
        for content_type in (None, "text/plain", "application/json; charset=utf-8"):
            body = go_json(self.spec())
            request = self.client.request("POST", "/containers", body, content_type=content_type)
            handle = checked(self.client.raw(request))["Handle"]
            self.destroy(handle)

    def test_late_streams_of_nobody_are_empty_and_no_failure(self):
        handle = self.create()
        target = f"/containers/{handle}/processes/p/attaches/none/stdout"
        connection, status = self.client.hijack("GET", target)
        self.assertEqual((status, connection.rest()), (200, b""))
        connection.close()


class Framing(Case):
    """How frames may be cut and put together."""

    def test_values_are_cut_and_joined_anywhere(self):
        handle = self.create()
        process = self.client.run(handle, {"path": "cat"})
        frames = '{"source":0,"data":"å"}  \n\t {"source":0,"data":"b"}{"source":0}'.encode()
        for byte in frames:
            process.a.send(bytes([byte]))
        self.assertEqual(process.wait(), (0, "åb".encode(), b""))

    def test_unknown_frames_are_ignored(self):
        handle = self.create()
        process = self.client.run(handle, {"path": "cat"})
        process.a.send(b'{}\n{"signal":99}\n{"unknown":[1,2]}\n{"tty":{}}\n')
        process.stdin("alive")
        process.end_stdin()
        self.assertEqual(process.wait(), (0, b"alive", b""))

    def test_the_members_of_one_frame_have_an_order(self):
        handle = self.create()
        process = self.client.run(handle, {"path": "cat"})
        # `source` comes before `signal`: this is input.
        process.a.send(b'{"source":0,"data":"in","signal":1}\n')
        process.until(b"in")
        process.end_stdin()
        self.assertEqual(process.wait()[0], 0)

    def test_names_match_in_any_case(self):
        handle = self.create()
        body = b'{"PATH":"sh","Args":["-c","exit 6"]}\n'
        request = (
            f"POST /containers/{handle}/processes HTTP/1.1\r\nHost: api\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        with Connection(self.client.address) as connection:
            connection.send(request.encode() + body)
            self.assertEqual(hijacked(connection), 201)
            self.assertIn(b'"exit_status":6', connection.rest())

    def test_what_follows_a_value_is_ignored(self):
        body = go_json(self.spec()) + b"trailing }"
        handle = checked(self.client.raw(self.client.request("POST", "/containers", body)))["Handle"]
        self.destroy(handle)

    def test_malformed_frames_are_a_detach(self):
        handle = self.create()
        process = self.client.run(
            handle, {"path": "sh", "args": ["-c", "while [ ! -e /go ]; do sleep 0.05; done"]}
        )
        process.a.send(b"this is no JSON\n")
        with self.assertRaises(Broken):
            process.status()
        self.sh(handle, "touch /go")
        self.assertEqual(self.client.attach(handle, process.id).wait()[0], 0)


if __name__ == "__main__":
    unittest.main()
