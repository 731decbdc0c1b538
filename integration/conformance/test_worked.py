"""The worked exchanges of the reference, member by member."""

import os
import pathlib
import unittest

from case import LIMITS, Case
from wire import eventually, go_json


class Worked(Case):
    def test_create_and_a_failing_duplicate(self):
        handle = self.name()
        self.addCleanup(self.destroy, handle)
        body = go_json({"handle": handle, "image": {"uri": self.image}, "limits": LIMITS})
        request = self.client.request("POST", "/containers", body)
        reply = self.client.raw(request)
        expected = f'{{"Handle":"{handle}"}}\n'.encode()
        self.assertEqual((reply.status, reply.body), (200, expected))
        self.assertEqual(reply.headers["content-type"], "application/json")
        self.assertEqual(reply.headers["content-length"], str(len(expected)))
        self.assertEqual(reply.headers["connection"].lower(), "close")
        reply = self.client.raw(request)
        expected = (
            f'{{"Type":"","Message":"Handle \'{handle}\' already in use",'
            '"Handle":"","ProcessID":"","Binary":""}\n'
        ).encode()
        self.assertEqual((reply.status, reply.body), (500, expected))
        self.assertEqual(reply.headers["content-length"], str(len(expected)))

    def test_run_with_stdin_output_and_term(self):
        handle = self.create()
        spec = {"path": "sh", "args": ["-c", "cat"]}
        process = self.client.run(handle, spec, outputs=False)
        process.stdin("café <3\n")
        process.b, process.c = process.output("stdout"), process.output("stderr")
        self.assertEqual(process.until(b"\n").decode(), "café <3\n")
        process.signal(0)
        self.assertEqual(process.wait(), (143, b"", b""))

    def test_run_that_cannot_start(self):
        handle = self.create()
        error = self.refused(
            "POST", f"/containers/{handle}/processes", {"path": "frobnicate", "image": {}}
        )
        self.assertEqual(error.kind, "ExecutableNotFoundError")
        self.assertIn("executable file not found in $PATH", error.message)
        self.assertEqual(error.status, 500)

    def test_a_pea_for_a_health_check(self):
        handle = self.create()
        spec = {
            "id": f"{handle}-liveness-healthcheck-0",
            "path": "/bin/sh",
            "args": ["-c", "cat /etc/cf-assets/greeting; exit 4"],
            "env": ["CF_INSTANCE_IP=10.0.0.1"],
            "rlimits": {"nofile": 1024},
            "limits": {"cpu_limits": {}, "memory_limits": {}},
            "image": {"uri": self.image},
            "bind_mounts": [{"src_path": self.shared, "dst_path": "/etc/cf-assets"}],
        }
        process = self.client.run(handle, spec)
        self.assertEqual(process.id, spec["id"])
        self.assertEqual(process.wait(), (4, b"hello\n", b""))

    def test_bulk_metrics_with_one_bad_handle(self):
        handle = self.create()
        reply = self.client.call("GET", f"/containers/bulk_metrics?handles={handle}%2Cgone")
        self.assertEqual(set(reply), {handle, "gone"})
        self.assertIsNone(reply[handle]["Err"])
        self.assertGreater(reply[handle]["Metrics"]["Age"], 0)
        self.assertEqual(
            reply["gone"]["Err"],
            {
                "Type": "ContainerNotFoundError",
                "Message": "unknown handle: gone",
                "Handle": "gone",
                "ProcessID": "",
                "Binary": "",
            },
        )
        self.assertEqual(reply["gone"]["Metrics"]["CPUStat"], {"Usage": 0, "User": 0, "System": 0})

    def test_bulk_info_with_one_bad_handle(self):
        handle = self.create(properties={"a": "b"})
        reply = self.client.call("GET", f"/containers/bulk_info?handles={handle}%2Cgone")
        self.assertIsNone(reply[handle]["Err"])
        self.assertEqual(reply[handle]["Info"]["Properties"]["a"], "b")
        self.assertEqual(reply["gone"]["Err"]["Type"], "ContainerNotFoundError")
        self.assertEqual(reply["gone"]["Info"]["State"], "")

    def test_the_end_of_a_container(self):
        handle = self.create()
        process = self.client.run(handle, {"path": "sleep", "args": ["1000"]})
        self.assertEqual(self.client.call("DELETE", f"/containers/{handle}"), {})
        self.assertEqual(process.wait()[0], 137)
        error = self.refused("DELETE", f"/containers/{handle}")
        self.assertEqual((error.status, error.kind), (404, "ContainerNotFoundError"))
        self.assertEqual(error.envelope["Handle"], handle)
        listed = self.client.call("GET", "/containers")["Handles"] or []
        self.assertNotIn(handle, listed)

    @property
    def shared(self):
        """A directory of the host."""
        place = pathlib.Path(os.environ["GARDEN_CONFORMANCE_DIR"]) / self.name()
        place.mkdir()
        (place / "greeting").write_text("hello\n")
        place.chmod(0o755)
        return str(place)


class Everything(Case):
    """Each route that needs no network, once."""

    def test_ping_and_capacity(self):
        self.assertEqual(self.client.plain("GET", "/ping").body, b"{}\n")
        capacity = self.client.call("GET", "/capacity")
        for key in ("memory_in_bytes", "disk_in_bytes", "schedulable_disk_in_bytes", "max_containers"):
            self.assertGreater(capacity[key], 0, key)

    def test_list_and_its_filters(self):
        one = self.create(properties={"executor:owner": "rep", "own": self.name()})
        two = self.create(properties={"executor:owner": "other"})

        def listed(query):
            return set(self.client.call("GET", f"/containers{query}")["Handles"] or [])

        self.assertTrue({one, two} <= listed(""))
        self.assertIn(one, listed("?executor%3Aowner=rep"))
        self.assertNotIn(two, listed("?executor%3Aowner=rep"))
        self.assertTrue({one, two} <= listed("?garden.state=all"))
        self.assertEqual(listed("?garden.state=other"), set())
        # An empty value matches what is missing; the first of repeated keys counts.
        self.assertTrue({one, two} <= listed("?nobody-has-this="))
        self.assertNotIn(one, listed("?own="))
        self.assertNotIn(two, listed("?executor%3Aowner=rep&executor%3Aowner=other"))

    def test_info(self):
        handle = self.create(properties={"k": "v"}, grace_time=3_600_000_000_000)
        info = self.client.call("GET", f"/containers/{handle}/info")
        self.assertEqual(info["State"], "active")
        self.assertEqual(
            set(info),
            {
                "State",
                "Events",
                "HostIP",
                "ContainerIP",
                "ContainerIPv6",
                "ExternalIP",
                "ContainerPath",
                "ProcessIDs",
                "Properties",
                "MappedPorts",
            },
        )
        self.assertEqual(info["Properties"]["k"], "v")
        self.assertEqual(info["Properties"]["garden.state"], "created")
        self.assertEqual(info["Properties"]["garden.grace-time"], "3600000000000")
        self.assertTrue(info["ContainerPath"].startswith("/"))
        self.assertEqual(self.client.call("PUT", f"/containers/{handle}/stop", {"kill": True}), {})
        info = self.client.call("GET", f"/containers/{handle}/info")
        self.assertEqual(info["State"], "stopped")
        # Nothing keeps a stopped container from running something.
        self.assertEqual(self.sh(handle, "exit 3")[0], 3)

    def test_stop_ends_processes_and_peas(self):
        handle = self.create()
        stubborn = "trap '' TERM; echo up; while :; do sleep 1; done"
        polite = self.client.run(handle, {"path": "sleep", "args": ["1000"]})
        pea = self.client.run(
            handle, {"path": "sleep", "args": ["1000"], "image": {"uri": self.image}}
        )
        self.client.call("PUT", f"/containers/{handle}/stop", {"kill": False})
        self.assertEqual(polite.wait()[0], 143)
        self.assertEqual(pea.wait()[0], 143)
        process = self.client.run(handle, {"path": "sh", "args": ["-c", stubborn]})
        process.until(b"up")
        self.client.call("PUT", f"/containers/{handle}/stop", {"kill": True})
        self.assertEqual(process.wait()[0], 137)

    def test_properties(self):
        handle = self.create(properties={"first": "1"})
        place = f"/containers/{handle}/properties"
        self.assertEqual(self.client.call("GET", place)["first"], "1")
        for key, escaped in (
            ("concourse:exit-status", "concourse:exit-status"),
            ("with/slash", "with%2Fslash"),
            ("with space", "with%20space"),
            ("semi;colon.dot", "semi;colon.dot"),
            ("ünïcode", "%C3%BCn%C3%AFcode"),
        ):
            self.assertEqual(self.client.call("PUT", f"{place}/{escaped}", {"value": key}), {})
            self.assertEqual(self.client.call("GET", f"{place}/{escaped}"), {"value": key})
            self.assertEqual(self.client.call("GET", place)[key], key)
            self.assertEqual(self.client.call("DELETE", f"{place}/{escaped}"), {})
            error = self.refused("GET", f"{place}/{escaped}")
            self.assertEqual(error.message, f"property does not exist: {key}")
            # Removing what is not there is no error.
            self.assertEqual(self.client.call("DELETE", f"{place}/{escaped}"), {})

    def test_limits_are_told_as_they_are(self):
        limits = LIMITS | {
            "memory_limits": {"limit_in_bytes": 64 << 20},
            "cpu_limits": {"limit_in_shares": 512},
            "pid_limits": {"max": 50},
            "bandwidth_limits": {"rate": 1, "burst": 2},
        }
        handle = self.create(limits=limits)
        place = f"/containers/{handle}/limits"
        self.assertEqual(self.client.call("GET", f"{place}/bandwidth"), {})
        self.assertEqual(
            self.client.call("GET", f"{place}/memory"), {"limit_in_bytes": 64 << 20}
        )
        self.assertIn("limit_in_shares", self.client.call("GET", f"{place}/cpu"))
        self.client.call("GET", f"{place}/disk")
        for what in ("bandwidth", "cpu", "disk", "memory"):
            reply = self.client.plain("PUT", f"{place}/{what}", {})
            self.assertEqual(reply.status, 405)

    def test_metrics(self):
        handle = self.create()
        metrics = self.client.call("GET", f"/containers/{handle}/metrics")
        self.assertEqual(
            set(metrics),
            {
                "MemoryStat",
                "CPUStat",
                "DiskStat",
                "NetworkStat",
                "PidStat",
                "Age",
                "CPUEntitlement",
            },
        )
        self.assertEqual(len(metrics["MemoryStat"]), 32)
        for name, value in metrics["MemoryStat"].items():
            self.assertIs(type(value), int, name)
            self.assertGreaterEqual(value, 0, name)
        self.assertEqual(set(metrics["CPUStat"]), {"Usage", "User", "System"})
        self.assertGreaterEqual(metrics["PidStat"]["Current"], 1)
        disk = metrics["DiskStat"]
        self.assertGreaterEqual(disk["TotalBytesUsed"], disk["ExclusiveBytesUsed"])

    def test_metrics_of_a_pea_by_its_id(self):
        handle = self.create()
        pea = self.client.run(
            handle, {"path": "sleep", "args": ["1000"], "image": {"uri": self.image}}
        )
        reply = self.client.call("GET", f"/containers/bulk_metrics?handles={pea.id}")
        self.assertIsNone(reply[pea.id]["Err"])
        self.assertEqual(reply[pea.id]["Metrics"]["CPUEntitlement"], 0)
        reply = self.client.call("GET", f"/containers/bulk_info?handles={pea.id}")
        self.assertIsNotNone(reply[pea.id]["Err"])
        pea.signal(1)
        self.assertEqual(pea.wait()[0], 137)
        # One that has ended is unknown.
        reply = self.client.call("GET", f"/containers/bulk_metrics?handles={pea.id}")
        self.assertIsNotNone(reply[pea.id]["Err"])

    def test_a_grace_time_ends_a_container(self):
        handle = self.create()
        reply = self.client.call("PUT", f"/containers/{handle}/grace_time", 1_000_000)
        self.assertEqual(reply, {})
        eventually(
            "the container is gone",
            lambda: handle not in (self.client.call("GET", "/containers")["Handles"] or []),
        )

    def test_a_connected_client_pauses_the_grace_time(self):
        handle = self.create()
        process = self.client.run(handle, {"path": "cat"})
        self.client.call("PUT", f"/containers/{handle}/grace_time", 50_000_000)
        other = self.create(grace_time=50_000_000)
        # The other one goes, this one stays for as long as somebody is connected.
        eventually(
            "the other container is gone",
            lambda: other not in (self.client.call("GET", "/containers")["Handles"] or []),
        )
        self.assertIn(handle, self.client.call("GET", "/containers")["Handles"])
        process.stdin("still there")
        process.end_stdin()
        self.assertEqual(process.wait(), (0, b"still there", b""))


if __name__ == "__main__":
    unittest.main()
