"""Takes places as several users, then asks for the version as root; prints both outcomes."""

import http.client
import json
import os
import select
import socket
import sys
import time

path, groups, refused = sys.argv[1], sys.argv[2], int(sys.argv[3])
users = [(int(uid), int(count)) for uid, count in (user.split(":") for user in sys.argv[4:])]


def connect():
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.connect(path)
    return connection


os.setgroups([int(group) for group in groups.split(",")])
held = []
for uid, count in users:
    # Who calls connect(2) counts, so one process can be many.
    os.seteuid(uid)
    for _ in range(count):
        held.append(connect())
        held[-1].sendall(b"POST / HTTP/1.1\r\n")
    os.seteuid(0)
# Those that have a place wait for the rest of their request, the others are answered at once.
deadline = time.monotonic() + 20
while True:
    answered, _, _ = select.select(held, [], [], 1)
    if len(answered) >= refused:
        break
    if time.monotonic() > deadline:
        sys.exit(f"{len(answered)} of {len(held)} were refused")
print(len(answered), answered[0].recv(100).split(b"\r\n")[0].decode())

root = http.client.HTTPConnection("localhost", timeout=20)
root.sock = connect()
request = {"jsonrpc": "2.0", "id": 1, "method": "daemon.version"}
root.request("POST", "/", json.dumps(request), {"Content-Type": "application/json"})
answer = root.getresponse()
print(answer.status, "result" in json.loads(answer.read()))
