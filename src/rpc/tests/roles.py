"""Becomes another user, calls each method once, prints name and error code or "ok"."""

import http.client
import json
import os
import socket
import sys

path, uid, gid, groups = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
requests = sys.argv[5:]
os.setgroups([int(group) for group in groups.split(",") if group])
os.setgid(gid)
os.setuid(uid)
for file in requests:
    request = json.load(open(file))
    connection = http.client.HTTPConnection("localhost", timeout=20)
    connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.sock.connect(path)
    except PermissionError:
        print(request["method"], "cannot connect")
        continue
    body = json.dumps(request)
    connection.request("POST", "/", body, {"Content-Type": "application/json"})
    answer = json.loads(connection.getresponse().read())
    print(request["method"], answer["error"]["code"] if "error" in answer else "ok")
