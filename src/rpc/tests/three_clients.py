"""Sends every golden request with nothing but the standard library and compares the answers."""

import http.client
import json
import pathlib
import socket
import sys


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path):
        super().__init__("localhost", timeout=20)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


def main(path, golden):
    connection = UnixConnection(path)  # one for all: keep-alive is part of the contract
    count = 0
    for file in sorted(pathlib.Path(golden).glob("*.request.json")):
        connection.request("POST", "/", file.read_bytes(), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        got = json.loads(answer.read())
        want = json.loads(file.with_name(file.name.replace(".request.", ".reply.")).read_text())
        assert answer.status == 200, (file.name, answer.status)
        assert got == want, (file.name, got)
        count += 1
    print(count)


main(*sys.argv[1:])
