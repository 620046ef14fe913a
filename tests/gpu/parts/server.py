"""The server as a process, clients who keep it busy, and the device's memory as it is watched."""

import json
import pathlib
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.request

from harness import nvidia_smi


class Server:
    """The server of a folder of packages on this device."""

    def __init__(self, run, models, flags=()):
        command = [run.program("windowpane"), "--models", str(models), "--port", "0", "--jobs", "off", *flags, *run.on()]
        run.commands.append(" ".join(command))
        self.log = tempfile.NamedTemporaryFile("w")
        self.process = subprocess.Popen(command, cwd=run.work, env=run.env, stdout=self.log, stderr=self.log, text=True)

    def __enter__(self):
        try:
            self.url = self.begun()
            return self
        except BaseException:
            self.process.kill()
            raise

    def begun(self, seconds=240):
        """Where it serves, once it does: it says so when its models are loaded."""
        over = time.monotonic() + seconds
        while time.monotonic() < over:
            said = pathlib.Path(self.log.name).read_text()
            at = said.find("is serving at http://")
            if at >= 0:
                return said[at:].split()[3]
            assert self.process.poll() is None, said[-2000:]
            time.sleep(0.05)
        raise AssertionError(f"it does not serve after {seconds} s: {said[-2000:]}")

    def __exit__(self, *_):
        self.process.terminate()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()

    def ticks(self, model):
        """Ticks of a model so far, and rows in them."""
        with urllib.request.urlopen(f"{self.url}/metrics") as response:
            text = response.read().decode()
        number = lambda name: next(
            float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(name) and f'model="{model}"' in line
        )
        return number("windowpane_tick_rows_count"), number("windowpane_tick_rows_sum")

    def busy(self, model, asking, seconds=60):
        """Waits until it has warmed up: a hundred ticks."""
        first, over = self.ticks(model)[0], time.monotonic() + seconds
        while self.ticks(model)[0] < first + 100:
            assert not asking.wrong and time.monotonic() < over, asking.wrong or "no hundred ticks in a minute"
            time.sleep(0.02)

    def post(self, path, body):
        request = urllib.request.Request(self.url + path, json.dumps(body).encode(), {"content-type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=300) as response:
                return json.loads(response.read())
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{path}: {error.code}: {error.read()[:500]}") from None


class Clients:
    """Clients who ask for images again as soon as they have them."""

    def __init__(self, server, count, body):
        self.server, self.body, self.over, self.wrong = server, body, threading.Event(), []
        self.threads = [threading.Thread(target=self.ask, args=(number,)) for number in range(count)]

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        for thread in self.threads:
            thread.join()
        assert not self.wrong, self.wrong[0]

    def ask(self, number):
        try:
            while not self.over.is_set():
                self.server.post("/v1/images/generations", {**self.body, "seed": number})
        except Exception as error:  # told where they are joined
            self.wrong.append(error)


class Watch:
    """The device's memory in use, in MiB, twice a second."""

    def __enter__(self):
        self.used, self.over = [], threading.Event()
        self.thread = threading.Thread(target=self.look)
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.thread.join()

    def look(self):
        while not self.over.wait(0.5):
            try:
                self.used.append(float(nvidia_smi("memory.used")["memory_used"]))
            except (OSError, KeyError, ValueError):
                return
