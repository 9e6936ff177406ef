"""Proves a node's images from within, where nobody else can: starts each as a kubelet would, without a pull.

    python3 prove.py RUNTIME SUBJECTS

RUNTIME is ``containerd`` (asked through its CRI) or ``docker``, SUBJECTS a JSON list: ``names``, ``target`` and
``config`` (how the digests begin), ``sandbox`` (whether it is the pause image), and ``start`` (how; null: it is looked
up only). On standard output come lines ``stage TEXT``, ``warn TEXT``, and ``proved JSON`` for each subject. Python 3.8
or later, standard library only: CRI is gRPC, and as much of that as it takes is in ``cri.py``, which goes to a machine
in one program with this. Sources: Kubernetes' CRI v1, Docker's command line (20.10).
"""

import http.client
import json
import os
import re
import socket
import subprocess
import sys
import time
from contextlib import closing, suppress
from copy import copy
from datetime import datetime
from pathlib import Path

from cri import CALL_LIMIT, SOCKET, Refused, call, pack, text, unpack

LOGS = os.environ.get("PARBAKE_LOGS", "/run/parbake/logs")
PLACES = os.environ.get("PARBAKE_PLACES", "/var/lib/parbake-start")  # on a disk: /run is memory
PARENT = os.environ.get("PARBAKE_CGROUP", "")
EXEC_LIMIT = 5  # seconds for a program that a probe runs
OUTPUT = 1000  # characters: what is said goes over a serial line
NODE, CONTAINER = 2, 1


# -- runtimes: found(name) -> (image's id, pinned), sandbox(), start(name, how); and of what a copy has started:
# status() -> state, log(), end(), runs(command) -> whether it ends with code 0 in the container


def program(*argv):
    """Run a program and return its output; raises Refused with the end of it."""
    done = subprocess.run(argv, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=CALL_LIMIT)
    words = done.stdout.decode(errors="replace")
    if done.returncode:
        raise Refused(words.strip()[-OUTPUT:])
    return words


def placed(how):
    """Make the folders and files that an image is started with; return them with their places in it, and "ro"."""
    folder, mounts = Path(PLACES, os.urandom(8).hex()), []
    for path in [*how["writable"], *how["files"]]:
        there = folder / str(len(mounts))
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        file = how["files"].get(path) if path not in how["writable"] else None
        if file:
            there.write_text(file["content"])
        else:
            there.mkdir()
        there.chmod(int(file["mode"], 8) if file else 0o777)
        mounts.append((str(there), path, bool(file)))
    return mounts


class Containerd:
    """The CRI, as a kubelet uses it: a sandbox for each container, on the host's network, which needs no CNI."""

    def __init__(self):
        self.names, self.unlisted = {}, None
        for line in self.ctr("images", "ls").splitlines()[1:]:
            name, _, digest = line.split()[:3]
            self.names[name] = digest
        self.config = program("sh", "-c", "containerd config dump 2>/dev/null")
        answer = call("RuntimeService/Version", b"")
        self.version = f"{text(answer, 2)} {text(answer, 3)}"
        self.mounts = not re.match(r"containerd v?(1|2\.0)\.", self.version)

    def ctr(self, *argv):
        """Run ctr where a kubelet's images are."""
        return program("ctr", "--address", SOCKET, "-n", "k8s.io", *argv)

    def found(self, name):
        """Return an image's id ("": it is not there) and whether it is pinned."""
        image = call("ImageService/ImageStatus", pack((1, pack((1, name))))).get(1)
        if not image:
            return "", False
        fields = unpack(image[-1])
        return text(fields, 1), bool(fields.get(8, [0])[-1])

    def sandbox(self, planned):
        """See to it that sandboxes can be made; return a warning and a problem."""
        found = re.search(r"^\s*sandbox(?:_image)? = ['\"](.+)['\"]", self.config, re.M)
        wanted = found.group(1) if found else ""
        short = wanted and not re.search("[:@]", wanted.rpartition("/")[2])
        self.pause = wanted = wanted + ":latest" if short else wanted  # what the CRI looks for
        if not wanted or self.found(wanted)[0]:
            return "", ""
        others = [planned] if planned else [name for name in self.names if re.search(r"/pause[:@]", name)]
        if not others or others[0] not in self.names:
            return "", f"no pod starts without a registry: the sandbox (pause) image {wanted} is not in the store"
        self.ctr("images", "tag", others[0], wanted)
        until = time.monotonic() + CALL_LIMIT  # the CRI hears of it by the store's events, a moment later
        while not self.found(wanted)[0] and time.monotonic() < until:
            time.sleep(0.05)
        words = "containerd, as this base starts it, makes sandboxes from {}, which is not in the store; {} was taken"
        return words.format(wanted, others[0]), ""

    def start(self, name, how):
        """Start a container; return when it was asked for (seconds since the epoch) and what its sandbox took."""
        image, mounts = name, []
        if how["up"]["kind"] == "mounted":  # a pod's volume, in a container of the pause image
            self.place = "/image-" + os.urandom(8).hex()
            image, mounts = self.pause, [pack((1, self.place), (3, 1), (9, pack((1, name))))]
        mounts += [pack((1, path), (2, place), (3, int(fixed)), (4, 1)) for place, path, fixed in placed(how)]
        identity = os.urandom(8).hex()
        self.folder = f"{LOGS}/{identity}"
        Path(self.folder).mkdir(parents=True)
        parent = PARENT or ("/parbake.slice" if re.search(r"SystemdCgroup = true", self.config) else "/parbake")
        options = pack((1, NODE), (2, CONTAINER))
        metadata = pack((1, f"prove-{identity}"), (2, identity), (3, "parbake"))
        linux = pack((1, parent), (2, pack((1, options))))
        pod = pack((1, metadata), (3, self.folder), (4, [b""]), (8, linux))  # 4: the host's resolv.conf is not copied
        asked = time.monotonic()
        self.pod = text(call("RuntimeService/RunPodSandbox", pack((1, pod))), 1)
        took = round(time.monotonic() - asked, 3)
        env = [pack((1, key), (2, value)) for key, value in how["env"].items()]
        user, _, group = how["user"].partition(":")
        wrapped = [pack((1, int(number))) if number.isdigit() else b"" for number in (user, group)]
        who = ((5, [wrapped[0]]),) if user.isdigit() else ((6, user),)
        who += ((7, int(how["read_only"])), (12, [wrapped[1]] if group else []))
        config = pack(
            (1, pack((1, "main"))), (2, pack((1, image))), (3, list(how["command"])), (4, list(how["args"])),
            (5, how["workdir"]), (6, env), (7, mounts), (11, "log"), (15, pack((2, pack((3, options), *who)))),
        )  # fmt: skip
        began = time.time()
        self.container = text(call("RuntimeService/CreateContainer", pack((1, self.pod), (2, config), (3, pod))), 1)
        call("RuntimeService/StartContainer", pack((1, self.container)))
        return began, took

    def status(self):
        """Return the state (0 created, 1 running, 2 exited), started, finished (seconds), the code and a reason."""
        fields = unpack(call("RuntimeService/ContainerStatus", pack((1, self.container)))[1][-1])
        state, started, finished, code = (fields.get(key, [0])[-1] for key in (3, 5, 6, 7))
        code = code - (1 << 64) if code >> 63 else code
        why = ": ".join(filter(None, (text(fields, 10), text(fields, 11))))
        return state, started / 1e9, finished / 1e9, code, "" if why == "Completed" else why

    def runs(self, command):
        """Whether a program ends with code 0 in the container; what cannot be run does not."""
        with suppress(Refused):
            request = pack((1, self.container), (2, list(command)), (3, EXEC_LIMIT))
            return not call("RuntimeService/ExecSync", request).get(3, [0])[-1]
        return False

    def holds(self, path):
        """Whether the image is mounted read-only, and holds a path; raises Refused with what is wrong."""
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                options = re.search(f" {self.place} (\\S+)", (process / "mountinfo").read_text())
                if options and "ro" not in options.group(1).split(","):
                    raise Refused("the image is mounted, but can be written to")
                if options:
                    there = Path(f"{process}/root{self.place}{path}")  # what the image itself links to leads out of it
                    if there.is_symlink() or there.is_file() or (there.is_dir() and any(there.iterdir())):
                        return True
                    raise Refused(f"the image is mounted, and holds no {path}, or nothing in it")
        raise Refused("the runtime started the pod, but mounted no image in it")

    def log(self):
        """Return lines as pairs of a time and a text; a piece of a longer line is put to the next."""
        lines, pieces = [], {}
        with suppress(OSError), Path(self.folder, "log").open("rb") as log:
            for line in log:
                moment, stream, tag, words = (*line.decode(errors="replace").rstrip("\n").split(" ", 3), "", "", "")[:4]
                words = pieces.pop(stream, "") + words
                if tag.startswith("P"):
                    pieces[stream] = words
                else:
                    lines.append((seconds(moment), words))
        return lines

    def end(self):
        """Stop and remove the container and its sandbox."""
        for method in ("StopPodSandbox", "RemovePodSandbox"):
            call("RuntimeService/" + method, pack((1, self.pod)))


class Docker:
    """Docker, on nodes where a kubelet uses that: it knows no pins, and its own sandboxes are made by the kubelet."""

    names, unlisted, mounts = {}, "", False  # nobody is told which index a name stands for

    def __init__(self):
        self.version = "docker " + program("docker", "version", "--format", "{{.Server.Version}}").strip()

    def found(self, name):
        """Return an image's id ("": it is not there), and that it is pinned: there are no pins."""
        with suppress(Refused):
            return program("docker", "image", "inspect", "--format", "{{.Id}}", name).strip(), True
        return "", False

    def sandbox(self, _planned):
        """Return no warning and no problem."""
        return "", ""

    def start(self, name, how):
        """Start a container; return when it was asked for (seconds since the epoch); no sandbox is made."""
        command, argv = list(how["command"]), ["docker", "run", "--detach", "--pull", "never", "--network", "host"]
        for key, value in how["env"].items():
            argv += ["--env", f"{key}={value}"]
        for place, path, fixed in placed(how):
            argv += ["--volume", "{}:{}{}".format(place, path, ":ro" if fixed else "")]
        argv += ["--user", how["user"]] if how["user"] else []
        argv += ["--workdir", how["workdir"]] if how["workdir"] else []
        argv += ["--read-only"] if how["read_only"] else []
        argv += ["--entrypoint", command[0]] if command else []
        began = time.time()
        self.container = program(*argv, name, *command[1:], *how["args"]).split()[-1]
        return began, 0.0

    def status(self):
        """Return the state (1 running, 2 exited), started, finished (seconds), the code and no reason."""
        form = "{{.State.Running}} {{.State.StartedAt}} {{.State.FinishedAt}} {{.State.ExitCode}}"
        running, started, finished, code = program("docker", "inspect", "--format", form, self.container).split()
        return 1 if running == "true" else 2, seconds(started), seconds(finished), int(code), ""

    def runs(self, command):
        """Whether a program ends with code 0 in the container; what cannot be run does not."""
        argv = ["timeout", str(EXEC_LIMIT), "docker", "exec", self.container, *command]
        return not subprocess.run(argv, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode

    def log(self):
        """Return lines as pairs of a time and a text."""
        lines = [line.partition(" ") for line in program("docker", "logs", "--timestamps", self.container).splitlines()]
        return [(seconds(moment), words) for moment, _, words in lines]

    def end(self):
        """Stop and remove the container."""
        program("docker", "rm", "--force", self.container)


def seconds(moment):
    """Return a time of RFC 3339 as seconds since the epoch; what is none is 0."""
    found = re.match(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(\.\d+)?(Z|[+-]\d\d:\d\d)$", moment)
    if not found:
        return 0.0
    zone = "+0000" if found.group(3) == "Z" else found.group(3).replace(":", "")
    return datetime.strptime(found.group(1) + zone, "%Y-%m-%dT%H:%M:%S%z").timestamp() + float(found.group(2) or 0)


# -- proof


def answers(up):
    """Whether the port of a probe answers, by HTTP where the probe says so."""
    try:
        if up["kind"] == "tcp":
            socket.create_connection(("127.0.0.1", up["port"]), 5).close()
            return True
        with closing(http.client.HTTPConnection("127.0.0.1", up["port"], timeout=5)) as connection:
            connection.request("GET", up["path"])
            return 200 <= connection.getresponse().status < 400
    except (OSError, http.client.HTTPException):
        return False


def up_since(up, status, now, runtime):
    """Return when the probe was up, None: not (yet). ``now`` is when the status was asked for; all since the epoch."""
    state, started, finished, code, _ = status
    ended_well = state == 2 and code == 0
    if up["kind"] == "exit":
        return finished if ended_well else None
    if up["kind"] == "running":
        if ended_well:
            return finished
        over = started + up["seconds"]
        return over if state == 1 and now >= over else None
    if up["kind"] == "mounted":
        return started if runtime.holds(up["path"]) and state == 1 else None
    if up["kind"] == "log":
        return next((moment for moment, words in runtime.log() if re.search(up["pattern"], words)), None)
    is_up = state == 1 and runtime.runs(up["command"]) if up["kind"] == "exec" else answers(up)
    return time.time() if is_up else None


def begin(runtime, subject, proof):
    """Start an image and wait until it is up; return what runs of it (None: nothing). Problems are in the proof."""
    how, one, runs = subject["start"], copy(runtime), False
    up, started = how["up"], False
    say("stage", "start " + proof["name"])
    try:
        if up["kind"] in ("tcp", "http") and answers({"kind": "tcp", "port": up["port"]}):
            raise Refused(
                "port {} is taken by the machine itself, so nothing can be learned from it".format(up["port"])
            )
        if up["kind"] == "mounted" and not runtime.mounts:
            raise Refused(f"an image volume needs containerd 2.1 or later, and this is {runtime.version}")
        started = True
        began, proof["sandbox_seconds"] = one.start(proof["name"], how)
        limit = time.monotonic() + how["timeout"]
        while True:
            now = time.time()  # before the status: what runs then has run until this moment
            state, one.since, _, code, why = status = one.status()
            since = up_since(up, status, now, one)
            if since is not None:
                proof["start_seconds"] = round(max(0.0, since - began), 3)
                runs = up["kind"] != "mounted" and (state == 1 or code)
                break
            if state == 2:
                raise Refused(f"it ended with code {code}{f' ({why})' if why else ''} before it was up")
            if time.monotonic() > limit:
                raise Refused("not up within {:g} s".format(how["timeout"]))
            time.sleep(0.2)
    except (Refused, subprocess.TimeoutExpired) as error:
        proof["problems"] = [str(error)]
    if started and not runs:
        end(one, proof)
    return one if runs else None


def look(one, subject, proof):
    """Wait until a container has run as long as it is watched, look whether it still does, and end it."""
    try:
        time.sleep(max(0, one.since + subject["start"]["watch"] - time.time()))
        now = time.time()
        state, since, finished, code, why = one.status()
        if state == 1:
            proof["ran_seconds"] = round(now - since, 3)
        elif code or subject["start"]["up"]["kind"] not in ("running", "log"):  # what answers is to stay
            proof["ran_seconds"], why = max(0, finished - since), f" ({why})" if why else ""
            words = "it was up, and ended with code {}{} {:.0f} s after its start"
            raise Refused(words.format(code, why, proof["ran_seconds"]))
    except (Refused, subprocess.TimeoutExpired) as error:
        proof["problems"] = [str(error)]
    end(one, proof)


def end(one, proof):
    """Keep what a container wrote, and remove it."""
    with suppress(Refused, subprocess.TimeoutExpired, AttributeError):  # it never came to a container
        proof["output"] = "\n".join(words for _, words in one.log())[-OUTPUT:]
        one.end()


def start_all(runtime, pairs):
    """Start images beside each other, and look at each once more at the end; what fails beside others, alone again.

    They share one network and one memory: two may want the same port. The same in verify/company.py.
    """
    company, alone = [], []
    for subject, proof in pairs:
        one = begin(runtime, subject, proof)
        if one:
            company.append((one, subject, proof))
        elif company and proof["problems"]:
            alone.append((subject, proof))
    for one, subject, proof in company:
        look(one, subject, proof)
        if proof["problems"] and len(pairs) > 1:
            alone.append((subject, proof))
    for subject, proof in alone:
        proof["problems"] = []
        subject["start"]["watch"] += proof.pop("ran_seconds", 0)  # it has at least as long to fail
        one = begin(runtime, subject, proof)
        if one:
            look(one, subject, proof)


def known(runtime, subject):
    """Return what the runtime's store says of a subject."""
    name, problems = subject["names"][0], []
    proof = {"name": name, "pinned": True, "runtime": runtime.version}
    for each in subject["names"]:
        target = runtime.names.get(each, runtime.unlisted)
        identity, pinned = runtime.found(each)
        if target is None or not identity:
            problems.append(f"{each}: the runtime's store has no image of this name")
        elif target and not target.startswith(subject["target"]):
            problems.append("{} points to {}, the plan says {}".format(each, target, subject["target"]))
        elif not identity.startswith(subject["config"]):
            problems.append("{} is {} for a kubelet, the plan says {}".format(each, identity, subject["config"]))
        elif not pinned:
            proof["pinned"] = False
            problems.append(f"{each} is not pinned: a kubelet's image garbage collection may remove it")
    return dict(proof, problems=problems)


def say(kind, words):
    """Report."""
    print(kind, words, flush=True)


def main(kind, path):
    """Prove all subjects."""
    subjects = json.loads(Path(path).read_text())
    runtime = Docker() if kind == "docker" else Containerd()
    planned = next((each["names"][0] for each in subjects if each["sandbox"]), "")
    warning, problem = runtime.sandbox(planned)
    if warning:
        say("warn", warning)
    pairs = [(subject, known(runtime, subject)) for subject in subjects]
    start_all(runtime, [(subject, proof) for subject, proof in pairs if subject["start"] and not proof["problems"]])
    for subject, proof in pairs:
        proof["problems"] += [problem] if problem and subject["start"] else []
        say("proved", json.dumps(proof))


if __name__ == "__main__":
    main(*sys.argv[1:])
