"""Requests that begin with the snapshot, and those that cannot: the answers are the same.

CNI_DEBUG=start says on stderr which of the two a request was. Without that a test here would show
nothing: a request goes on in silence when there is no snapshot.
"""

from __future__ import annotations

import ctypes
import difflib
import errno
import itertools
import json
import os
import random
import re
import resource
import signal
import struct
import subprocess
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness.build import ROOT
from tests.harness.netns import BARE_ENV
from tests.harness.wait import wait_until
from tests.harness.world import CASES, WORK_ON_INTERFACE, World, needing
from tools.interpreter.snapshot import parse

from .test_damage import DESCRIPTOR, MAGIC, parts, snapshot_parts

if TYPE_CHECKING:
    from collections.abc import Callable

WITH = "cni: starts with the snapshot\n"
WITHOUT = "cni: starts without the snapshot: "
REQUEST = {**BARE_ENV, "CNI_COMMAND": "VERSION", "CNI_SERVER": "off", "CNI_DEBUG": "start"}
# struct program of launcher/image.c: an ELF header and eight segments
HEADERS = 64 + 8 * 56


@pytest.fixture(scope="session")
def bin_dir(program: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file under the names of the plugins; all runs here are by exec."""
    directory = tmp_path_factory.mktemp("snapshot") / "bin"
    directory.mkdir()
    (directory / "cni").symlink_to(program)
    for case in CASES.values():
        (directory / case["type"]).unlink(missing_ok=True)
        (directory / case["type"]).symlink_to(program)
    return directory


def run(
    program: Path,
    *words: str,
    env: dict[str, str] | None = None,
    stdin: str = "",
    before: Callable[[], None] | None = None,
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [program, *words],
        env={**REQUEST, **(env or {})},
        input=stdin,
        capture_output=True,
        text=True,
        errors="surrogateescape",
        timeout=60,
        preexec_fn=before,
    )


# --- which of the two ----------------------------------------------------------------------------


def test_a_request_begins_with_the_snapshot(bin_dir: Path) -> None:
    done = run(bin_dir / "bridge")
    assert (done.returncode, done.stderr) == (0, WITH)
    assert "1.1.0" in json.loads(done.stdout)["supportedVersions"]


def test_nothing_is_said_without_being_asked(bin_dir: Path) -> None:
    for choice in ("on", "off"):
        done = run(bin_dir / "bridge", env={"CNI_DEBUG": "", "CNI_SNAPSHOT": choice})
        assert done.stderr == ""


@pytest.mark.parametrize(
    ("env", "words", "why"),
    [
        ({"CNI_SNAPSHOT": "off"}, [], "CNI_SNAPSHOT is off"),
        ({"CNI_STANDINS": "off"}, [], "CNI_STANDINS is off"),
        ({"CNI_COMMAND": ""}, ["--version"], "it is for requests"),
        ({}, ["--version"], "it is for requests"),
    ],
)
def test_what_begins_without(
    bin_dir: Path, env: dict[str, str], words: list[str], why: str
) -> None:
    name = "cni" if words else "bridge"
    done = run(bin_dir / name, *words, env=env)
    assert (done.returncode, done.stderr) == (0, f"{WITHOUT}{why}\n")


# --- never a reason to fail ----------------------------------------------------------------------


def refuse(address: int, code: int) -> Callable[[], None]:
    """Have mmap(2) at `address` end with an error, as seccomp, SELinux or another mapping do."""
    number = {"x86_64": 9, "aarch64": 222}[os.uname().machine]
    instructions = [
        (0x20, 0, 0, 0),  # the system call's number,
        (0x15, 0, 3, number),
        (0x20, 0, 0, 16),  # and the lower half of its first argument
        (0x15, 0, 1, address),
        (0x06, 0, 0, 0x00050000 | code),  # SECCOMP_RET_ERRNO
        (0x06, 0, 0, 0x7FFF0000),  # SECCOMP_RET_ALLOW
    ]
    code_bytes = b"".join(struct.pack("<HBBI", *each) for each in instructions)
    libc = ctypes.CDLL(None, use_errno=True)

    def install() -> None:
        room = ctypes.create_string_buffer(code_bytes)
        program = struct.pack("<HxxxxxxQ", len(instructions), ctypes.addressof(room))
        libc.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
        if libc.prctl(22, 2, program, 0, 0):  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
            os._exit(99)

    return install


WHY = {
    errno.EEXIST: "its addresses are in use",
    errno.ENOMEM: "there is not enough memory, or its limit (ulimit -v) is too low",
    errno.EACCES: "a security policy of this system forbids it",
    errno.EPERM: "a security policy of this system forbids it",
    errno.EAGAIN: os.strerror(errno.EAGAIN),
}


@pytest.mark.parametrize("code", WHY, ids=errno.errorcode.get)
@pytest.mark.parametrize("number", range(5))
def test_a_mapping_that_is_refused(bin_dir: Path, program: Path, number: int, code: int) -> None:
    """Each part, and the zeros behind it; what was mapped before is as if it had never been."""
    found = snapshot_parts(program.read_bytes())
    addresses = [at for part in found for at in (part[0], part[0] + part[2] * (part[1] > part[2]))]
    wanted = sorted(set(addresses))
    if number >= len(wanted):
        number = len(wanted) - 1
    done = run(bin_dir / "bridge", before=refuse(wanted[number], code))
    assert (done.returncode, done.stderr) == (0, f"{WITHOUT}{WHY[code]}\n")
    assert "1.1.0" in json.loads(done.stdout)["supportedVersions"]


@pytest.mark.parametrize("megabytes", [16, 31, 32, 40])
def test_little_memory(bin_dir: Path, megabytes: int) -> None:
    """By ulimit -v: an answer or an error, and never half of the snapshot."""
    limits = (resource.RLIMIT_AS, (megabytes << 20, megabytes << 20))
    done = run(bin_dir / "bridge", before=lambda: resource.setrlimit(*limits))
    if megabytes >= 32:
        assert (done.returncode, done.stderr) == (0, WITH)
    else:
        assert done.returncode == 1
        assert "too little memory" in json.loads(done.stdout)["msg"]


def test_another_page_size(program: Path, tmp_path: Path) -> None:
    """The file says that it was made where pages have 16 KB."""
    data = bytearray(program.read_bytes())
    place = data.index(MAGIC) + DESCRIPTOR.size
    size = 16 + 16 * 32
    struct.pack_into("<Q", data, place, 16384)
    start, _, _ = parts(bytes(data))
    described = bytes(data[place : place + size])
    checksum = zlib.crc32(described, zlib.crc32(data[start : start + HEADERS]))
    struct.pack_into("<I", data, place - 4, checksum)
    copy = tmp_path / "bridge"
    copy.write_bytes(data)
    copy.chmod(0o755)
    done = run(copy)
    assert (done.returncode, done.stderr) == (
        0,
        f"{WITHOUT}it was made for another page size\n",
    )


# --- the same answers ----------------------------------------------------------------------------

MASKS = (
    (r"\b([0-9a-f]{2}:){5}[0-9a-f]{2}\b", "MAC"),
    (r"\bveth[0-9a-f]{8}\b", "veth"),
    (r"\bfe80::[0-9a-f:]+", "fe80"),
    (r'"(handle|ifindex|link_index|iif|oif)": \d+', "number"),
    (r"\b[0-9a-f]{8,}\b", "hash"),
    (r"\bcookie-[0-9a-f]+", "cookie"),
    (r"(packets|bytes)\W+\d+", "counter"),
)


def masked(value: object, directory: Path, world: World) -> list[str]:
    text = json.dumps(value, indent=1, default=str)
    for name in (str(directory), str(world.container), world.container.name, world.host.name):
        text = text.replace(name, "NAME")
    for pattern, word in MASKS:
        text = re.sub(pattern, word, text)
    return text.splitlines()


def story(bin_dir: Path, case: str, directory: Path, choice: str) -> list[str]:
    """What every verb of a plugin answers, and what it does; CNI_SNAPSHOT is `choice`."""
    world = World(bin_dir, CASES[case], directory)
    world.runtime.env = {
        **world.runtime.env,
        "CNI_SNAPSHOT": choice,
        "CNI_DEBUG": "start",
        "CNI_SERVER": "off",
    }
    told: list[str] = []
    counter = itertools.count()

    def look() -> None:
        """The keys of a state may be in another order, where they are masked."""
        lines = masked(world.state(), directory, world)
        told.extend(["state", *sorted(line.rstrip(",") for line in lines)])

    def tell(command: str, conf: Any = None, **more: Any) -> Any:
        reply = world.runtime.call(command, world.plugin, conf or world.conf, **more)
        first, _, rest = reply.stderr.partition("\n")
        assert first.startswith((WITH if choice == "on" else WITHOUT).strip()), reply
        answer = {"rc": reply.rc, "stdout": reply.stdout, "stderr": rest}
        told.extend([f"{next(counter)} {command}", *masked(answer, directory, world)])
        return reply

    try:
        netns = {"netns": world.container}
        tell("VERSION")
        tell("STATUS")
        world.prepare()
        added = tell("ADD", **netns)
        look()
        if world.plugin in WORK_ON_INTERFACE:  # `state` has taken it away
            world.interface(True)
        previous = json.loads(added.stdout) if added.rc == 0 else None
        tell("CHECK", {**world.conf, "prevResult": previous}, **netns)
        tell("CHECK", {**world.conf, "prevResult": {**(previous or {}), "ips": []}}, **netns)
        tell("ADD", **netns)
        tell("ADD", {**world.conf, "cniVersion": "9.9.9"}, **netns)
        tell("ADD", "{nonsense", **netns)
        tell("ADD", {**world.conf, "name": "a/b"}, **netns)
        tell("DEL", {**world.conf, "prevResult": previous}, **netns)
        tell("DEL", **netns)
        tell("GC", {**world.conf, "cni.dev/valid-attachments": []})
        look()
        return told
    finally:
        world.close()


@pytest.mark.timeout(240)
@pytest.mark.parametrize("case", [param for name in CASES for param in [needing(name)]])
def test_every_verb_does_the_same(bin_dir: Path, tmp_path: Path, case: str) -> None:
    without = story(bin_dir, case, tmp_path / "off", "off")
    with_it = story(bin_dir, case, tmp_path / "on", "on")
    difference = "\n".join(difflib.unified_diff(without, with_it, lineterm=""))
    assert not difference, difference


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)])
@pytest.mark.parametrize("command", ["VERSION", "ADD"])
def test_standard_streams_that_are_closed(
    bin_dir: Path, command: str, closed: tuple[int, ...]
) -> None:
    outcomes = []
    for choice in ("on", "off"):
        done = run(
            bin_dir / "loopback",
            env={"CNI_SNAPSHOT": choice, "CNI_DEBUG": "", "CNI_COMMAND": command},
            before=lambda: [os.close(fd) for fd in closed] and None,
        )
        outcomes.append((done.returncode, done.stdout, done.stderr))
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize("path", ["/", "/dev/full", "/nonexistent/../dev/null"])
def test_strange_standard_streams(bin_dir: Path, path: str) -> None:
    """stdin is a directory; nothing can be written to stdout."""
    outcomes = []
    for choice in ("on", "off"):
        if path == "/dev/full":
            script = f"exec {bin_dir}/bridge > {path}"
        else:
            script = f"exec {bin_dir}/bridge < {path}"
        env = {**REQUEST, "CNI_SNAPSHOT": choice, "CNI_DEBUG": ""}
        done = subprocess.run(["sh", "-c", script], env=env, capture_output=True, timeout=60)
        # what follows the first line tells of the interpreter's inside
        outcomes.append((done.returncode, done.stdout, done.stderr.partition(b"\n")[0]))
    assert outcomes[0] == outcomes[1]


def test_a_name_that_is_no_plugin(program: Path, tmp_path: Path) -> None:
    (tmp_path / "nonsense").symlink_to(program)
    outcomes = []
    for choice in ("on", "off"):
        done = run(tmp_path / "nonsense", env={"CNI_SNAPSHOT": choice, "CNI_DEBUG": ""})
        outcomes.append((done.returncode, done.stdout, done.stderr))
    assert outcomes[0] == outcomes[1]
    assert 'no plugin is called \\"nonsense\\"' in outcomes[0][1]


def test_environments_of_every_size(bin_dir: Path, tmp_path: Path) -> None:
    """A thousand requests in a row: where the stack begins, and what the process is given, is never
    the same."""
    chance = random.Random(1)
    conf = {
        "cniVersion": "1.1.0",
        "name": "net",
        "ipam": {
            "type": "host-local",
            "dataDir": str(tmp_path),
            "ranges": [[{"subnet": "10.1.0.0/16"}]],
        },
    }
    for number in range(1000):
        more = {
            f"V{n}": "".join(chance.choices("xyz= é\udcff\n", k=chance.randrange(1 << 9)))
            for n in range(chance.randrange(80))
        }
        command = ("ADD", "DEL", "VERSION")[number % 3]
        env = more | {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": f"c{number // 3}",
            "CNI_NETNS": "/nonexistent",
            "CNI_IFNAME": "eth0",
            "CNI_PATH": str(bin_dir),
        }
        done = run(bin_dir / "host-local", env=env, stdin=json.dumps(conf))
        assert (done.returncode, done.stderr) == (0, WITH), (number, done)
        if command == "ADD":
            assert json.loads(done.stdout)["ips"]


def is_awaited(pid: int, number: signal.Signals) -> bool:
    """Whether a process has a handler for a signal, and does not block it."""
    status = Path(f"/proc/{pid}/status").read_text()
    masks = dict(re.findall(r"^Sig(Cgt|Blk):\s*(\w+)", status, re.MULTILINE))
    caught, blocked = (int(masks[name], 16) >> number - 1 & 1 for name in ("Cgt", "Blk"))
    return bool(caught and not blocked)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_a_request_that_waits(
    bin_dir: Path, tmp_path: Path, number: signal.Signals
) -> None:
    """host-local waits for its lock, which somebody else has."""
    import fcntl

    directory = tmp_path / "store/net"
    directory.mkdir(parents=True)
    conf = {
        "cniVersion": "1.1.0",
        "name": "net",
        "ipam": {
            "type": "host-local",
            "dataDir": str(tmp_path / "store"),
            "ranges": [[{"subnet": "10.1.0.0/16"}]],
        },
    }
    env = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c1", "CNI_NETNS": "/nonexistent"}
    env |= {"CNI_IFNAME": "eth0", "CNI_PATH": str(bin_dir)}
    with (directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        child = subprocess.Popen(
            [bin_dir / "host-local"],
            env={**REQUEST, **env},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert child.stdin is not None
        child.stdin.write(json.dumps(conf))
        child.stdin.close()
        child.stdin = None
        wait_until(lambda: is_awaited(child.pid, number), "its handlers", process=child)
        child.send_signal(number)
        output, said = child.communicate(timeout=60)
    assert said == WITH
    assert child.returncode == 1
    assert f"interrupted by {number.name}" in json.loads(output)["msg"]
    assert list(directory.glob("10.*")) == []


@pytest.mark.parametrize("ignored", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE])
def test_signals_that_the_caller_ignores(bin_dir: Path, ignored: signal.Signals) -> None:
    done = run(bin_dir / "bridge", before=lambda: signal.signal(ignored, signal.SIG_IGN) and None)
    assert (done.returncode, done.stderr) == (0, WITH)


def test_it_takes_little(bin_dir: Path, tmp_path: Path) -> None:
    """Counted by the kernel: pages that are touched, where importing touches thousands."""
    faults = {}
    for choice in ("on", "off"):
        files = [(os.POSIX_SPAWN_OPEN, fd, "/dev/null", os.O_RDWR, 0) for fd in (0, 1, 2)]
        env = {**REQUEST, "CNI_SNAPSHOT": choice}
        pid = os.posix_spawn(bin_dir / "bridge", ["bridge"], env, file_actions=files)
        _, status, usage = os.wait4(pid, 0)
        assert status == 0
        faults[choice] = usage.ru_minflt
    assert faults["on"] < faults["off"] / 2, faults


# --- what is written -----------------------------------------------------------------------------

PYTHON_H = """
#include <stddef.h>
typedef struct {
    void *ctx;
    void *(*alloc)(void *, size_t);
    void (*free)(void *, void *, size_t);
} PyObjectArenaAllocator;
void PyObject_SetArenaAllocator(PyObjectArenaAllocator *);
"""
RECORDER = """
#include "Python.h"
#include "snapshot.h"
#include <stdlib.h>
#include <string.h>

static PyObjectArenaAllocator arenas;
void PyObject_SetArenaAllocator(PyObjectArenaAllocator *given) { arenas = *given; }

char *cni_data[2 * 4096 / sizeof(char *)] __attribute__((aligned(4096)));
__asm__(".globl cni_snapshot_start\\n.set cni_snapshot_start, cni_data\\n"
        ".globl cni_snapshot_end\\n.set cni_snapshot_end, cni_data + 8192\\n");
extern void *__real_malloc(size_t);

int main(int argc, char **argv)
{
    char local, *outside = __real_malloc(100);
    snapshot_begin();
    char **block = malloc(600), *gone = malloc(1 << 20);
    char **arena = arenas.alloc(NULL, 1 << 20);
    memset(gone, 1, 1 << 20);
    memcpy(gone, &outside, sizeof outside);
    block = realloc(block, 1200);
    cni_data[7] = (char *)block;
    block[100] = (char *)&cni_data[3];
    arena[0] = getenv("nothing");
    arena[100] = (char *)main;
    free(gone); /* with what it pointed to */
    switch (argv[1][0]) {
    case 's': cni_data[800] = &local; break;
    case 'h': block[149] = outside; break;
    case 'a': arena[4000] = argv[0]; break;
    }
    return snapshot_write(argv[2]) < 0;
}
"""


@pytest.mark.parametrize("points_to", ["nothing else", "stack", "heap", "arguments"])
def test_a_pointer_to_what_is_not_in_it(tmp_path: Path, points_to: str) -> None:
    """The program that writes the snapshot finds it, and writes none."""
    sources = ROOT / "tools/interpreter/src"
    (tmp_path / "Python.h").write_text(PYTHON_H)
    (tmp_path / "main.c").write_text(RECORDER)
    wraps = [f"-Wl,--wrap={name}" for name in ("malloc", "calloc", "realloc", "free")]
    flags = ["-no-pie", "-fno-pie", "-O1", "-DCNI_PAGE=4096", "-DCNI_AREA=0x50000000", *wraps]
    command = ["gcc", *flags, f"-I{tmp_path}", f"-I{sources}", "-o", tmp_path / "recorder"]
    subprocess.run([*command, tmp_path / "main.c", sources / "snapshot.c"], check=True)
    output = tmp_path / "snapshot"
    done = subprocess.run(
        [tmp_path / "recorder", points_to, output], capture_output=True, text=True, timeout=60
    )
    if points_to == "nothing else":
        assert (done.returncode, done.stderr) == (0, "")
        assert [part.size for part in parse(output.read_bytes()).parts][-1] == 1 << 20
    else:
        assert done.returncode == 1
        assert done.stderr.count("which is not in it") == 1


ROOM = """
#include "Python.h"
#include "snapshot.h"
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void PyObject_SetArenaAllocator(PyObjectArenaAllocator *given) { (void)given; }

char *cni_data[4096 / sizeof(char *)] __attribute__((aligned(4096)));
__asm__(".globl cni_snapshot_start\\n.set cni_snapshot_start, cni_data\\n"
        ".globl cni_snapshot_end\\n.set cni_snapshot_end, cni_data + 4096\\n");

enum { PIECES = 300, ROUNDS = 200000, LARGEST = 6000 };
static unsigned char *pieces[PIECES];
static size_t sizes[PIECES];

static void need(int condition, const char *what)
{
    if (condition)
        return;
    fprintf(stderr, "%s\\n", what);
    exit(1);
}

static void compare(int i)
{
    for (size_t at = 0; at < sizes[i]; at++)
        need(pieces[i][at] == (unsigned char)i, "memory is given away twice");
}

int main(int argc, char **argv)
{
    (void)argc;
    snapshot_begin();
    char *before = malloc(100);
    snapshot_make_room();
    need(snapshot_write(argv[1]) == 0, "no snapshot");
    free(before); /* stays */
    int inside = 0, outside = 0;
    srand(1);
    for (int round = 0; round < ROUNDS; round++) {
        int i = rand() % PIECES;
        size_t size = 1 + (size_t)(rand() % LARGEST), had = sizes[i];
        compare(i);
        if (pieces[i] && rand() % 2) {
            pieces[i] = realloc(pieces[i], size);
            sizes[i] = had < size ? had : size;
            compare(i);
        } else {
            free(pieces[i]);
            pieces[i] = rand() % 2 ? malloc(size) : calloc(1, size);
        }
        need(pieces[i] != NULL && (uintptr_t)pieces[i] % 16 == 0, "no memory");
        need((char *)pieces[i] != before, "the snapshot's memory is given away");
        *(snapshot_has(pieces[i]) ? &inside : &outside) += 1;
        memset(pieces[i], i, sizes[i] = size);
    }
    need(inside > ROUNDS / 10 && outside > ROUNDS / 10, "the room is not used, or has no end");
    unsigned char *zeros = calloc(300, 10);
    for (int i = 0; i < 3000; i++)
        need(!zeros[i], "calloc gives what was used");
    need(calloc(SIZE_MAX / 4, 16) == NULL && malloc(SIZE_MAX / 2) == NULL, "too much is given");
    for (int i = 0; i < PIECES; i++)
        free(pieces[i]);
    free(zeros);
    char *large = malloc(500 << 10);
    need(snapshot_has(large), "what is given back does not become one again");
    return 0;
}
"""


def test_the_room_behind_it(tmp_path: Path) -> None:
    """What a process that goes on allocates first: each byte is one piece's, and all comes back."""
    sources = ROOT / "tools/interpreter/src"
    (tmp_path / "Python.h").write_text(PYTHON_H)
    (tmp_path / "main.c").write_text(ROOM)
    wraps = [f"-Wl,--wrap={name}" for name in ("malloc", "calloc", "realloc", "free")]
    flags = [
        "-no-pie",
        "-fno-pie",
        "-O1",
        "-fno-builtin",
        "-DCNI_PAGE=4096",
        "-DCNI_AREA=0x50000000",
    ]
    command = ["gcc", *flags, *wraps, f"-I{tmp_path}", f"-I{sources}", "-o", tmp_path / "room"]
    subprocess.run([*command, tmp_path / "main.c", sources / "snapshot.c"], check=True)
    done = subprocess.run(
        [tmp_path / "room", tmp_path / "snapshot"], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_request_that_goes_on_for_long(bin_dir: Path) -> None:
    """More than goes unnoted (UNNOTED_STEPS of main.c): what it executes is then specialized."""
    addresses = [
        {"address": f"10.{a}.{b}.1/16", "gateway": f"10.{a}.0.1"}
        for a in range(8)
        for b in range(256)
    ]
    conf = {"cniVersion": "1.1.0", "name": "n", "type": "static"}
    stdin = json.dumps({**conf, "ipam": {"type": "static", "addresses": addresses}})
    env = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c", "CNI_NETNS": "/x", "CNI_IFNAME": "eth0"}
    answers = []
    for choice in ("on", "off"):
        done = run(
            bin_dir / "static", env={**env, "CNI_PATH": "/x", "CNI_SNAPSHOT": choice}, stdin=stdin
        )
        assert done.returncode == 0, done.stdout
        assert done.stderr.startswith((WITH if choice == "on" else WITHOUT).strip())
        answers.append(done.stdout)
    assert answers[0] == answers[1]
    assert len(json.loads(answers[0])["ips"]) == len(addresses)
