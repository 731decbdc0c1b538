"""The network routes: what the reference says of them, to the byte."""

import ipaddress
import unittest

from case import Case
from wire import go_json


def envelope(message):
    """The body of a refusal without a type, as Go writes it."""
    return (
        f'{{"Type":"","Message":"{message}","Handle":"","ProcessID":"","Binary":""}}\n'
    ).encode()


class Network(Case):
    def post(self, handle, path, value):
        """A call as the Go client sends it: status and body."""
        body = value if isinstance(value, bytes) else go_json(value)
        target = f"/containers/{handle}/net/{path}"
        reply = self.client.raw(self.client.request("POST", target, body))
        self.assertEqual(reply.headers["content-type"], "application/json")
        return reply.status, reply.body

    def info(self, handle):
        return self.client.call("GET", f"/containers/{handle}/info")

    def test_net_in_echoes_what_was_allocated(self):
        handle = self.create()
        # Zeros are left out, and the handle repeats the path.
        status, body = self.post(handle, "in", {"handle": handle, "container_port": 8080})
        first = self.info(handle)["MappedPorts"][0]["HostPort"]
        self.assertEqual(
            (status, body), (200, f'{{"host_port":{first},"container_port":8080}}\n'.encode())
        )
        self.assertGreaterEqual(first, 61001)
        # Port 0 inside is the one outside; both 0 are one of the pool.
        status, body = self.post(handle, "in", {"handle": handle, "host_port": 7101})
        self.assertEqual((status, body), (200, b'{"host_port":7101,"container_port":7101}\n'))
        status, body = self.post(handle, "in", {"handle": "another"})
        second = self.info(handle)["MappedPorts"][2]["HostPort"]
        self.assertEqual(
            body, f'{{"host_port":{second},"container_port":{second}}}\n'.encode()
        )
        self.assertNotEqual(first, second)
        self.assertEqual(
            self.info(handle)["MappedPorts"],
            [
                {"HostPort": first, "ContainerPort": 8080},
                {"HostPort": 7101, "ContainerPort": 7101},
                {"HostPort": second, "ContainerPort": second},
            ],
        )

    def test_net_in_of_nonsense(self):
        handle = self.create()
        status, body = self.post(handle, "in", {"host_port": 70000})
        self.assertEqual(status, 500)
        self.assertIn(b"port 70000 is out of range", body)
        self.assertEqual(self.info(handle)["MappedPorts"], [])

    def test_net_out_answers_an_empty_object(self):
        handle = self.create()
        full = {
            "protocol": 1,
            "networks": [{"start": "10.0.0.1", "end": "10.0.0.9"}, {"start": "10.1.0.1"}, {}],
            "ports": [{"start": 80, "end": 90}],
            "log": True,
        }
        for rule in (
            full,
            {},
            {"protocol": 2, "networks": [{"end": "10.0.0.1"}], "ports": [{"start": 53, "end": 53}]},
            {"protocol": 3, "icmps": {}},
            {"protocol": 3, "icmps": {"code": 0}},
            {"protocol": 3, "icmps": {"type": 8, "code": 0}},
            # Which messages counts for ICMP only.
            {"protocol": 1, "icmps": {"type": 8}},
        ):
            self.assertEqual(self.post(handle, "out", rule), (200, b"{}\n"), rule)
        self.assertEqual(self.post(handle, "out/bulk", [full, {}]), (200, b"{}\n"))
        # A nil slice of Go, and an empty one.
        self.assertEqual(self.post(handle, "out/bulk", b"null\n"), (200, b"{}\n"))
        self.assertEqual(self.post(handle, "out/bulk", []), (200, b"{}\n"))

    def test_rules_without_a_meaning(self):
        handle = self.create()
        ports = [{"start": 1, "end": 2}]
        for rule, message in (
            ({"ports": ports}, "Ports cannot be specified for Protocol ALL"),
            ({"protocol": 3, "ports": ports}, "Ports cannot be specified for Protocol ICMP"),
            ({"protocol": 4}, "invalid protocol: 4"),
            ({"protocol": 9}, "invalid protocol: 9"),
        ):
            expected = (500, envelope(message))
            self.assertEqual(self.post(handle, "out", rule), expected, rule)
            self.assertEqual(self.post(handle, "out/bulk", [{}, rule]), expected, rule)
            error = self.refused("POST", "/containers", self.spec(netout_rules=[rule]))
            self.assertEqual((error.status, error.message), (500, message))

    def test_what_a_create_maps_is_in_its_info(self):
        handle = self.create(
            netin=[
                {"host_port": 7202, "container_port": 8080},
                {"host_port": 0, "container_port": 0},
            ],
            netout_rules=[{"protocol": 1, "networks": [{"start": "10.0.0.1"}]}],
            network="10.77.1.0/24",
        )
        info = self.info(handle)
        self.assertEqual(info["MappedPorts"][0], {"HostPort": 7202, "ContainerPort": 8080})
        pool = info["MappedPorts"][1]
        self.assertEqual(pool["HostPort"], pool["ContainerPort"])
        self.assertEqual(info["ContainerIP"], "10.77.1.2")
        self.assertEqual(info["HostIP"], "10.77.1.1")
        self.assertEqual(info["ContainerIPv6"], "")
        self.assertNotEqual(info["ExternalIP"], "")
        bulk = self.client.call("GET", f"/containers/bulk_info?handles={handle}")
        self.assertIsNone(bulk[handle]["Err"])
        self.assertEqual(bulk[handle]["Info"]["MappedPorts"], info["MappedPorts"])
        self.assertEqual(bulk[handle]["Info"]["ContainerIP"], "10.77.1.2")

    def test_reserved_properties_tell_the_same(self):
        handle = self.create(netin=[{"host_port": 7303, "container_port": 1}])
        info = self.info(handle)
        properties = self.client.call("GET", f"/containers/{handle}/properties")
        for key, field in (
            ("garden.network.container-ip", "ContainerIP"),
            ("garden.network.host-ip", "HostIP"),
            ("garden.network.external-ip", "ExternalIP"),
        ):
            self.assertEqual(properties[key], info[field])
        self.assertEqual(
            properties["garden.network.mapped-ports"], '[{"HostPort":7303,"ContainerPort":1}]'
        )
        self.assertNotIn("garden.network.container-ipv6", properties)

    def test_a_dynamic_address_is_the_first_of_its_four(self):
        info = self.info(self.create())
        address = ipaddress.ip_address(info["ContainerIP"])
        self.assertIn(address, ipaddress.ip_network("10.254.0.0/22"))
        self.assertEqual(int(address) % 4, 2)
        self.assertEqual(ipaddress.ip_address(info["HostIP"]), address - 1)

    def test_networks_that_cannot_be(self):
        taken = self.create(network="10.77.2.9/24")
        self.assertEqual(self.info(taken)["ContainerIP"], "10.77.2.9")
        # Equal subnets are shared.
        self.assertEqual(self.info(self.create(network="10.77.2.0/24"))["HostIP"], "10.77.2.1")
        for network, text in (
            ("banana", "invalid CIDR address: banana"),
            ("10.77.2.9/33", "invalid CIDR address: 10.77.2.9/33"),
            ("10.254.0.0/30", "the requested subnet (10.254.0.0/30) overlaps the dynamic "),
            ("10.77.2.0/25", "the requested subnet (10.77.2.0/25) overlaps an existing subnet"),
            ("10.77.2.9/24", "the requested IP is already allocated"),
            ("10.77.2.1/24", "gateway"),
            ("10.77.2.255/24", "broadcast"),
        ):
            error = self.refused("POST", "/containers", self.spec(network=network))
            self.assertEqual(error.status, 500)
            self.assertIn(text, error.message)

    def test_an_address_alone_is_one_of_four(self):
        info = self.info(self.create(network="10.77.3.6"))
        self.assertEqual((info["ContainerIP"], info["HostIP"]), ("10.77.3.6", "10.77.3.5"))

    def test_capacity_is_the_pools(self):
        self.assertEqual(self.client.call("GET", "/capacity")["max_containers"], 256)

    def test_metrics_count_what_goes_through(self):
        handle = self.create()
        stat = self.client.call("GET", f"/containers/{handle}/metrics")["NetworkStat"]
        self.assertEqual(set(stat), {"RxBytes", "TxBytes"})
        status, _, _ = self.sh(handle, "ping -c 1 -W 1 10.254.3.254; true")
        self.assertEqual(status, 0)
        after = self.client.call("GET", f"/containers/{handle}/metrics")["NetworkStat"]
        self.assertGreater(after["TxBytes"], stat["TxBytes"])

    def test_unknown_handles_are_typed(self):
        for path, value in (("in", {}), ("out", {}), ("out/bulk", [{}])):
            status, body = self.post("gone", path, value)
            self.assertEqual(status, 404)
            self.assertEqual(
                body,
                b'{"Type":"ContainerNotFoundError","Message":"unknown handle: gone",'
                b'"Handle":"gone","ProcessID":"","Binary":""}\n',
            )


if __name__ == "__main__":
    unittest.main()
