"""A run of the list of parts: what is asked, where programs and packages are, what has been found, and the files that tell it.
The parts themselves are in `parts/`."""

import datetime
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import traceback

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent


class Missing(Exception):
    """A part needs what is not here; it is told and passed over, and is not done."""


class Run:
    """A run: what is asked, where its things are, and what has been found so far."""

    def __init__(self, options, parts, groups):
        self.options, self.parts, self.groups = options, parts, groups
        self.small = options.small
        self.cpu = options.device == "cpu"
        self.began = time.monotonic()
        today = datetime.datetime.now(datetime.timezone.utc).date()
        self.work = options.work.resolve()
        # What means nothing is not kept among what does.
        usual = self.work / "small-run" if self.small else ROOT / f"tests/gpu/runs/{today}-{options.device}"
        self.out = (options.out or usual).resolve()
        self.commands = []
        self.env = environment()

    # === The list ===

    def go(self):
        asked = self.groups.get(self.options.parts) or self.options.parts.split(",")
        unknown = [name for name in asked if name not in self.parts]
        if unknown:
            known = ", ".join([*self.groups, *self.parts])
            print(f"error: there is no part `{unknown[0]}`; expected of {known}", file=sys.stderr)
            return 2
        left = [name for name in asked if self.options.again or not self.file(name).exists()]
        # What failed the last time comes last, lest it keep the others from being done at all.
        left.sort(key=lambda name: self.file(name).with_suffix(".failed").exists())
        if self.options.list:
            for name in asked:
                state = "done" if name not in left else f"about {self.parts[name].minutes} min"
                print(f"{name:12} {state:14} {self.parts[name].__doc__}")
            return 0
        for folder in (self.out / "parts", self.work):
            folder.mkdir(parents=True, exist_ok=True)
        wrong = 0
        for position, name in enumerate(left):
            part = self.parts[name]
            if not self.small and self.minutes_left() < part.minutes and position > 0:
                print(f"{name}: about {part.minutes} minutes, {self.minutes_left():.1f} are left; the same command goes on")
                break
            print(f"{name}: {part.__doc__}", flush=True)
            done = self.do(name, part)
            wrong += not done
            failed = self.file(name).with_suffix(".failed")
            failed.unlink(missing_ok=True) if done else failed.touch()
            self.write()
        todo = [name for name in asked if not self.file(name).exists()]
        print(f"\n{self.out}: {len(asked) - len(todo)} of {len(asked)} parts are done" + (f"; left: {', '.join(todo)}" if todo else ""))
        return 1 if wrong else 0

    def do(self, name, part):
        self.commands = []
        began = time.monotonic()
        try:
            found = part(self)
        except Missing as missing:
            print(f"  passed over: {missing}", flush=True)
            return True
        except Exception as error:  # whatever it is, the parts behind it are done
            print(f"  FAILED: {''.join(traceback.format_exception(error)[-2:])}", flush=True)
            return False
        finished = found.pop("finished", True)
        when = {"date": str(datetime.datetime.now(datetime.timezone.utc).date()), "commit": self.commit(), "versions": versions()}
        seconds = round(time.monotonic() - began, 1)
        record = {"part": name, "seconds": seconds, **when, "commands": self.commands, **found}
        if finished:
            self.file(name).write_text(json.dumps(record, indent=1) + "\n")
        for line in found.get("measurements", []):
            print(f"  {shown(line)}", flush=True)
        return True

    def file(self, name):
        return self.out / "parts" / f"{name}.json"

    def minutes_left(self):
        return self.options.minutes - (time.monotonic() - self.began) / 60

    def write(self):
        """The run as one file, and as a page."""
        parts = [json.loads(self.file(name).read_text()) for name in self.parts if self.file(name).exists()]
        card = next((part["card"] for part in parts if part["part"] == "card"), {})
        run = {
            "gpu": card.get("name"),
            "driver": card.get("driver_version"),
            "clocks": card,
            "command": " ".join(["tests/gpu/check.py", *sys.argv[1:]]),
            "commit": self.commit(),
            "versions": versions(),
            "date": str(datetime.datetime.now(datetime.timezone.utc).date()),
            "small": self.small,
            "measurements": [{"part": part["part"], **line} for part in parts for line in part.get("measurements", [])],
        }
        (self.out / "run.json").write_text(json.dumps(run, indent=1) + "\n")
        lines = [f"# {run['gpu'] or 'no GPU'}, {run['date']}", "", f"Commit {run['commit']}; {json.dumps(run['versions'])}."]
        if self.small:
            lines += ["", "**Toy sizes: the numbers mean nothing.**"]
        for part in parts:
            lines += ["", f"## {part['part']}", "", f"{self.parts[part['part']].__doc__} ({part['date']}, commit {part['commit']})", ""]
            if part.get("measurements"):
                lines += ["| what | ours | peer | ratio | bar | |", "| --- | --- | --- | --- | --- | --- |"]
                lines += [row(line) for line in part["measurements"]]
            if part.get("text"):
                lines += ["", part["text"]]
        (self.out / "report.md").write_text("\n".join(lines) + "\n")

    def commit(self):
        told = self.options.binaries / "commit"
        if told.is_file():
            return told.read_text().strip()
        git = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], cwd=ROOT, capture_output=True, text=True)
        return git.stdout.strip() or None

    # === Programs ===

    def program(self, name):
        path = (self.options.binaries / name).resolve()
        if not path.is_file():
            raise Missing(f"there is no {path}; `cargo xtask gpu-check --pack {self.options.binaries}` makes it")
        return str(path)

    def call(self, *command, env=None, check=True):
        """Runs it in the work folder; what it says on stdout."""
        command = [str(word) for word in command]
        self.commands.append(" ".join(command))
        env = {**self.env, **(env or {})}
        done = subprocess.run(command, cwd=self.work, env=env, capture_output=True, text=True, timeout=1800)
        if check and done.returncode != 0:
            said = (done.stderr or done.stdout).strip().splitlines()[-12:]
            raise AssertionError(f"`{self.commands[-1]}` ended with {done.returncode}:\n    " + "\n    ".join(said))
        return done.stdout

    def lines(self, *command, **how):
        return [json.loads(line) for line in self.call(*command, **how).splitlines() if line.startswith("{")]

    def trainer(self, *words, **how):
        return self.call(self.program("windowpane-trainer"), *words, **how)

    def peer(self, *words):
        return self.lines(sys.executable, HERE / "peer.py", "--device", self.options.device, *words)

    def on(self):
        return ["--device", self.options.device]

    def ort(self):
        library = self.env.get("ORT_DYLIB_PATH")
        if not library:
            raise Missing("ORT_DYLIB_PATH names no ONNX Runtime; for a GPU it is that of the wheel onnxruntime-gpu")
        return library

    def images(self, name):
        folder = self.options.data and (self.options.data / name).resolve()
        if not folder or not folder.is_dir():
            raise Missing(f"--data names no folder with {name}/")
        return folder

    def before(self, name):
        """The package with which a training run is to begin: what an earlier list of parts came to, if one is named."""
        package = self.options.before and (self.options.before / name).resolve()
        if package and not (package / "manifest.json").is_file():
            raise Missing(f"--from names no folder with {name}/manifest.json")
        return package

    def networks(self):
        """Packages with random weights; made once."""
        folder = self.work / ("networks-small" if self.small else "networks")
        if not (folder / "done").exists():
            self.trainer("export-ops", folder, f"--networks={'gpu-tiny' if self.small else 'gpu'}")
            (folder / "done").touch()
        return folder

    def recipe(self, name, changes):
        """A recipe of the repository with other values, `table.key` by `table.key`, as a file of this run."""
        table, changed, lines = "", set(), []
        for line in (ROOT / "trainer/recipes" / f"{name}.toml").read_text().splitlines():
            if line.startswith("["):
                table = line.strip("[]") + "."
            key = table + line.split("=")[0].strip()
            if key in changes:
                line = f"{line.split('=')[0].strip()} = {json.dumps(changes[key])}"
                changed.add(key)
            lines.append(line)
        assert changed == set(changes), f"{name}.toml has no {set(changes) - changed}"
        folder = pathlib.Path(tempfile.mkdtemp(dir=self.work))
        (folder / f"{name}.toml").write_text("\n".join(lines) + "\n")
        return folder / f"{name}.toml"


# === Numbers ===


def measurement(name, ours, unit, peer=None, bar=None, ratio=None):
    """One figure, of both sides where there are two; `ratio` is ours over theirs of a speed, and theirs over ours of a time. The
    bar is one of the ratio."""
    if ratio is None and peer and ours:
        ratio = peer / ours if unit in ("ms", "s") else ours / peer
    line = {"name": name, "ours": ours, "peer": peer, "ratio": ratio, "unit": unit}
    # Without both sides it was not compared, and no bar is met.
    return {**line, "bar": bar, "met": None if bar is None else ratio is not None and ratio >= bar}


def at_least(name, ours, bar, unit=""):
    """One figure by itself, and what it has to be."""
    return {**measurement(name, ours, unit), "bar": bar, "met": None if bar is None else ours >= bar}


def at_most(name, ours, bar, unit=""):
    """The same, where less is better."""
    return {**measurement(name, ours, unit), "bar": bar, "met": ours <= bar}


def shown(line):
    number = lambda value: "-" if value is None else f"{value:,.4g}"
    text = f"{line['name']}: {number(line['ours'])} {line['unit']}"
    if line["peer"] is not None:
        text += f", peer {number(line['peer'])}"
    if line["ratio"] is not None:
        text += f", ratio {number(line['ratio'])}"
    if line["bar"] is not None:
        text += f" (bar {number(line['bar'])}: {'met' if line['met'] else 'MISSED'})"
    return text


def row(line):
    number = lambda value: "" if value is None else f"{value:,.4g}"
    met = {None: "", True: "met", False: "**missed**"}[line["met"]]
    cells = [line["name"], f"{number(line['ours'])} {line['unit']}", number(line["peer"]), number(line["ratio"])]
    return "| " + " | ".join([*cells, number(line["bar"]), met]) + " |"


def middle(line):
    """The median milliseconds of a line, if it has any."""
    return statistics.median(line["milliseconds"]) if line.get("milliseconds") else None


# === Where things are ===


def environment():
    """For the programs: the folders of torch and of NVIDIA's libraries beside it, where their loader looks first."""
    env = dict(os.environ)
    folders = []
    try:
        import torch

        folders.append(pathlib.Path(torch.__file__).parent / "lib")
        folders += sorted((pathlib.Path(torch.__file__).parent.parent / "nvidia").glob("*/lib"))
    except ImportError:
        pass
    folders = [str(folder) for folder in folders]
    env["LD_LIBRARY_PATH"] = ":".join([*folders, *filter(None, [env.get("LD_LIBRARY_PATH")])])
    return env


def versions():
    found = {"python": platform.python_version()}
    for name in ("torch", "onnx", "numpy"):
        try:
            found[name] = __import__(name).__version__
        except ImportError:
            found[name] = None
    found["onnxruntime"] = pathlib.Path(os.environ.get("ORT_DYLIB_PATH", "none")).name
    return found


def nvidia_smi(*fields):
    words = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(words, capture_output=True, text=True)
    except FileNotFoundError:
        return {}
    if done.returncode != 0:
        return {}
    return dict(zip((field.replace(".", "_") for field in fields), done.stdout.strip().splitlines()[0].split(", ")))
