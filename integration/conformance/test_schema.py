"""Requests made from the description of the API (`docs/openapi.json`): right ones, and wrong ones.

Whatever is sent, the answer is one that the description has, an error is Garden's envelope, and what is
wrong with a request is told as the request's fault: a status of 5xx without a kind would say that the
server failed. More requests with GARDEN_CONFORMANCE_SCALE, others with GARDEN_CONFORMANCE_SEED.
"""

import json
import os
import pathlib
import random
import unittest
import urllib.parse

from case import Case
from wire import Broken, Connection

SCALE = float(os.environ.get("GARDEN_CONFORMANCE_SCALE", "1"))
SEED = int(os.environ.get("GARDEN_CONFORMANCE_SEED", "1"))
PATH = pathlib.Path(__file__).parents[2] / "docs" / "openapi.json"
ENVELOPE = {"Type", "Message", "Handle", "ProcessID", "Binary"}
TYPES = {"ContainerNotFoundError", "ProcessNotFoundError", "ExecutableNotFoundError"}

STRINGS = ["", "a", "é\u2028<&>", "x" * 300, "../..", "/", "\x00", "a b", "%41", "garden.state", "-1", "🌱"]
NUMBERS = [0, 1, -1, 2**31, 2**53 + 1, 2**63, 2**64 - 1, 2**64, 1.5, 1e300]
OTHERS = [None, True, "text", 7, [], {}, [[]], {"a": {}}]


class Generator:
    """Values for schemas."""

    def __init__(self, document, seed):
        self.document = document
        self.random = random.Random(seed)

    def resolve(self, schema):
        while "$ref" in schema:
            schema = self.document["components"]["schemas"][schema["$ref"].rsplit("/", 1)[1]]
        return schema

    def right(self, schema, depth=0):
        """A value that the schema has."""
        schema = self.resolve(schema)
        if schema.get("nullable") and self.random.random() < 0.2:
            return None
        kind = schema.get("type")
        if "enum" in schema:
            return self.random.choice(schema["enum"])
        if kind == "object":
            if "additionalProperties" in schema:
                inner = schema["additionalProperties"]
                return {
                    self.random.choice(STRINGS): self.right(inner, depth + 1)
                    for _ in range(self.random.randrange(3))
                }
            required = schema.get("required", [])
            return {
                name: self.right(inner, depth + 1)
                for name, inner in schema.get("properties", {}).items()
                if name in required or self.random.random() < 0.5
            }
        if kind == "array":
            return [self.right(schema["items"], depth + 1) for _ in range(self.random.randrange(3))]
        if kind == "integer":
            low, high = schema.get("minimum", -(2**63)), schema.get("maximum", 2**64 - 1)
            return self.random.choice([low, high, self.random.randint(low, high), max(low, 0)])
        if kind == "boolean":
            return self.random.random() < 0.5
        return self.random.choice(STRINGS)

    def wrong(self, value):
        """The same with something wrong in it, somewhere."""
        if self.random.random() < 0.3 or not isinstance(value, (dict, list)) or not value:
            return self.random.choice(OTHERS + NUMBERS + STRINGS)
        if isinstance(value, list):
            at = self.random.randrange(len(value))
            return value[:at] + [self.wrong(value[at])] + value[at + 1 :]
        name = self.random.choice(list(value))
        return value | {name: self.wrong(value[name])}

    def broken(self, data):
        """Bytes that are hardly JSON any more."""
        how = self.random.randrange(5)
        at = self.random.randrange(len(data) + 1)
        if how == 0:
            return data[:at]
        if how == 1:
            return data[:at] + bytes([self.random.randrange(256)]) + data[at:]
        if how == 2:
            return b"[" * 2000 + data
        if how == 3:
            return data.replace(b'"', b"'", 1)
        return b"\xff\xfe" + data


def matches(generator, schema, value, place="answer"):
    """Why a value is not what the schema says; nothing when it is."""
    schema = generator.resolve(schema)
    if value is None:
        return None if schema.get("nullable") else f"{place} is null"
    kind = schema.get("type")
    python = {"object": dict, "array": list, "string": str, "boolean": bool, "integer": int}[kind]
    if not isinstance(value, python) or (kind == "integer" and isinstance(value, bool)):
        return f"{place} is {value!r}, no {kind}"
    if kind == "object":
        for name in schema.get("required", []):
            if name not in value:
                return f"{place} has no {name}"
        for name, inner in value.items():
            known = schema.get("properties", {}).get(name) or schema.get("additionalProperties")
            if known and (why := matches(generator, known, inner, f"{place}.{name}")):
                return why
    if kind == "array":
        for at, inner in enumerate(value):
            if why := matches(generator, schema["items"], inner, f"{place}[{at}]"):
                return why
    if kind == "integer" and not schema.get("minimum", value) <= value <= schema.get("maximum", value):
        return f"{place} is {value}"
    return None


class Schema(Case):
    """The description, and the server."""

    @classmethod
    def setUpClass(cls):
        cls.document = json.loads(PATH.read_text())
        cls.operations = [
            (method.upper(), path, operation)
            for path, all_of in cls.document["paths"].items()
            for method, operation in all_of.items()
        ]

    def setUp(self):
        super().setUp()
        self.generator = Generator(self.document, SEED)
        self.pick = self.generator.random
        self.address = os.environ["GARDEN_CONFORMANCE_SOCKET"]
        self.addCleanup(self.sweep)
        self.mine = set(self.client.call("GET", "/containers?garden.state=all")["Handles"] or [])

    def sweep(self):
        """Destroys what right requests have made."""
        now = self.client.call("GET", "/containers?garden.state=all")["Handles"] or []
        for handle in set(now) - self.mine:
            self.destroy(urllib.parse.quote(handle, safe=""))

    def exchange(self, method, target, body):
        """Status, headers and body of a request; the connection is cut after a hijacked head."""
        connection = Connection(self.address)
        try:
            head = f"{method} {target} HTTP/1.1\r\nHost: api\r\nConnection: close\r\n"
            if body is not None:
                head += f"Content-Length: {len(body)}\r\n"
            connection.send(head.encode() + b"\r\n" + (body or b""))
            _, status, headers = connection.head()
            if method == "HEAD":
                return status, headers, b""
            raw = headers.get("content-type") is None or status == 201
            return status, headers, b"" if raw and status < 300 else connection.body(headers)
        finally:
            connection.socket.close()

    def segment(self, value):
        return urllib.parse.quote(value, safe="") or "x"

    def target(self, path, operation, handle):
        """A path with parameters in it, most of them of something that is there."""
        query = []
        for parameter in operation.get("parameters", []):
            name = parameter["name"]
            value = handle if name == "handle" and self.pick.random() < 0.7 else self.pick.choice(STRINGS)
            if parameter["in"] == "path":
                path = path.replace("{" + name + "}", self.segment(value))
            elif name == "timeout_ms":
                query.append("timeout_ms=1")
            elif name != "follow" and self.pick.random() < 0.7:
                query.append(f"{name}={urllib.parse.quote(value)}")
        return path + ("?" + "&".join(query) if query else "")

    def check(self, method, target, operation, body, malformed):
        status, headers, answer = self.exchange(method, target, body)
        shown = f"{method} {target} {body!r:.400}: {status} {headers} {answer!r:.400}"
        if status < 300:
            self.assertIn(str(status), operation["responses"], shown)
            content = operation["responses"][str(status)]["content"]
            if "application/json" in content:
                schema = content["application/json"]["schema"]
                why = matches(self.generator, schema, json.loads(answer))
                self.assertIsNone(why, shown)
            return status
        self.assertIn(status, (400, 404, 405, 500), shown)
        envelope = json.loads(answer)
        self.assertEqual(set(envelope), ENVELOPE, shown)
        self.assertTrue(all(isinstance(text, str) for text in envelope.values()), shown)
        self.assertTrue(envelope["Message"], shown)
        if malformed and status >= 500:
            told = envelope["Type"] in TYPES or "garden-error-kind" in headers
            self.assertTrue(told, f"the server's fault: {shown}")
        return status

    def bodies(self, operation):
        """Bodies for an operation, and whether they are malformed."""
        content = operation.get("requestBody", {}).get("content", {})
        schema = content.get("application/json", {}).get("schema")
        if schema is None:
            yield None, False
            return
        right = self.generator.right(schema)
        if operation["operationId"] != "create":
            # Right ones for a create would pull images by the dozen; see below.
            yield json.dumps(right).encode(), False
        yield json.dumps(self.generator.wrong(right)).encode(), True
        yield self.generator.broken(json.dumps(right).encode()), True
        yield b"", True

    def test_whatever_is_sent_is_answered_as_described(self):
        handle = self.create()
        statuses = {}
        for _ in range(max(1, int(4 * SCALE))):
            for method, path, operation in self.operations:
                if operation["operationId"] in {"destroy", "pull", "stop", "events", "stream-in"}:
                    continue
                for body, malformed in self.bodies(operation):
                    target = self.target(path, operation, handle)
                    status = self.check(method, target, operation, body, malformed)
                    statuses[status] = statuses.get(status, 0) + 1
        # Both ends were seen: neither all refused nor all taken.
        self.assertGreater(statuses.get(200, 0), 20, statuses)
        self.assertGreater(statuses.get(500, 0), 20, statuses)
        self.client.call("GET", "/ping")

    def test_a_container_that_the_description_allows_is_made_or_refused(self):
        operation = self.document["paths"]["/containers"]["post"]
        schema = operation["requestBody"]["content"]["application/json"]["schema"]
        for _ in range(max(1, int(12 * SCALE))):
            spec = self.generator.right(schema)
            spec.pop("rootfs", None)
            spec |= {"image": {"uri": self.image}, "handle": self.name(), "bind_mounts": []}
            self.check("POST", "/containers", operation, json.dumps(spec).encode(), False)

    def test_methods_and_paths_that_there_are_not(self):
        for method, path, _ in self.operations:
            for other in ("HEAD", "PATCH", "OPTIONS", "TRACE", "BREW"):
                target = path.replace("{", "").replace("}", "")
                try:
                    status, _, _ = self.exchange(other, target, None)
                except Broken:
                    self.fail(f"{other} {target}: no answer")
                self.assertEqual(status, 405, f"{other} {target}")
        for target in ("/", "//", "/x", "/containers/", "/ping/", "/containers//info", "*", "/%", "/%zz/%"):
            status, _, _ = self.exchange("GET", target, None)
            self.assertIn(status, (400, 404), target)


if __name__ == "__main__":
    unittest.main()
