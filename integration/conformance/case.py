"""What the test cases share: a client, and containers that are gone at the end."""

import contextlib
import os
import unittest
import uuid

from wire import Client, Refused

# Every member that the Go client always sends.
LIMITS = {
    "bandwidth_limits": {},
    "cpu_limits": {},
    "disk_limits": {},
    "memory_limits": {},
    "pid_limits": {},
}


class Case(unittest.TestCase):
    """A test with a client."""

    maxDiff = None

    def setUp(self):
        self.client = Client()
        self.addCleanup(self.client.close)
        self.image = os.environ["GARDEN_CONFORMANCE_IMAGE"]

    def spec(self, **members):
        """What the Go client sends for a container."""
        return {"image": {"uri": self.image}, "limits": LIMITS} | members

    def name(self):
        """A handle that nobody else has."""
        return f"c-{uuid.uuid4()}"

    def create(self, **members):
        """A container that is destroyed after the test."""
        handle = self.client.call("POST", "/containers", self.spec(**members))["Handle"]
        self.addCleanup(self.destroy, handle)
        return handle

    def destroy(self, handle):
        with contextlib.suppress(Refused):
            self.client.call("DELETE", f"/containers/{handle}")

    def sh(self, handle, script, **members):
        """Runs a script to its end: the status and both outputs."""
        spec = {"path": "sh", "args": ["-c", script]} | members
        return self.client.run(handle, spec).wait()

    def refused(self, method, target, value=None, **more):
        """The envelope with which a call is refused."""
        with self.assertRaises(Refused) as caught:
            self.client.call(method, target, value, **more)
        self.assertEqual(
            set(caught.exception.envelope), {"Type", "Message", "Handle", "ProcessID", "Binary"}
        )
        return caught.exception
