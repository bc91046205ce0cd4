#!/usr/bin/env python3
"""Shows a VNC server in noVNC in a headless Chromium, types, and saves what is to be seen. A trial by hand:

    apt-get install chromium novnc websockify python3-websocket
    /usr/bin/python3 novnc.py PORT PASSWORD PICTURE.png [TEXT TO TYPE; \\n is Return]
"""

import base64
import json
import subprocess
import sys
import tempfile
import time
import urllib.request

import websocket

WEB, DEBUG = 6081, 9223
SIZE = (1000, 640)


def patiently(attempt, seconds=30):
    deadline = time.monotonic() + seconds
    while True:
        try:
            return attempt()
        except (OSError, StopIteration, KeyError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


class Page:
    """A page of Chromium, by its DevTools protocol."""

    def __init__(self):
        pages = json.load(urllib.request.urlopen(f"http://127.0.0.1:{DEBUG}/json"))
        address = next(page["webSocketDebuggerUrl"] for page in pages if page["type"] == "page")
        self.socket = websocket.create_connection(address, suppress_origin=True)
        self.count = 0

    def ask(self, method, **params):
        self.count += 1
        self.socket.send(json.dumps({"id": self.count, "method": method, "params": params}))
        while True:
            answer = json.loads(self.socket.recv())
            if answer.get("id") == self.count:
                return answer["result"]

    def value(self, expression):
        return self.ask("Runtime.evaluate", expression=expression)["result"]["value"]

    def key(self, **key):
        for kind in ("keyDown", "keyUp"):
            self.ask("Input.dispatchKeyEvent", type=kind, **key)


def main():
    port, password, picture, *text = sys.argv[1:]
    url = f"http://127.0.0.1:{WEB}/vnc_lite.html?password={password}"
    chromium = ["chromium", "--headless=new", "--no-sandbox", f"--window-size={SIZE[0]},{SIZE[1]}",
                f"--remote-debugging-port={DEBUG}", f"--user-data-dir={tempfile.mkdtemp()}", url]
    proxy = ["websockify", "--web", "/usr/share/novnc", f"127.0.0.1:{WEB}", f"127.0.0.1:{port}"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    processes = [subprocess.Popen(proxy, **quiet), subprocess.Popen(chromium, **quiet)]
    try:
        page = patiently(Page)
        page.ask("Page.enable")
        patiently(lambda: urllib.request.urlopen(f"http://127.0.0.1:{WEB}/vnc_lite.html"))
        page.ask("Page.navigate", url=url)
        status = ""
        while not status.startswith("Connected"):
            status = patiently(lambda: page.value("document.getElementById('status').textContent"))
            time.sleep(0.1)
        time.sleep(1)
        page.ask("Runtime.evaluate", expression="document.querySelector('canvas').focus()")
        for character in "".join(text).replace("\\n", "\r"):
            enter = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13}
            page.key(**(enter if character == "\r" else {"key": character, "text": character}))
            time.sleep(0.02)
        time.sleep(2)
        shot = page.ask("Page.captureScreenshot")["data"]
        with open(picture, "wb") as file:
            file.write(base64.b64decode(shot))
        print(status)
    finally:
        for process in processes:
            process.terminate()
            process.wait()


main()
