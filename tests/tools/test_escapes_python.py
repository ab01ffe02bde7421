"""Code that tries to get out of its sandbox, to outlive it, or to use up the machine: all real, in bounded time."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from m1agent import ToolError
from m1agent.tools import Tool
from m1tools.python import python
from m1tools.sandbox import Bounds, Isolation, isolation
from m1tools.sandbox.isolation import bounds_pids

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux isolates programs")

SLEEP = "import time; time.sleep(60)"
BYTES = b"a\x00\xff\xfe\x1b[31mred\x1b[0m\x1b]0;title\x07\x9b"
TIGHT = Bounds(seconds=8, memory=400 << 20, processes=24, scratch=32 << 20, file_size=16 << 20, output=1 << 20)
LEVELS = [Isolation("root", landlock=True, counted=True), Isolation("user", landlock=True, counted=True)]


def usable(level: Isolation) -> bool:
    here = isolation()
    return here.complete and (level.namespaces == "user" or here.namespaces == "root")


@pytest.fixture(params=LEVELS, ids=lambda level: level.namespaces)
def tool(request: pytest.FixtureRequest) -> Tool:
    if not usable(request.param):
        pytest.skip("this machine does not isolate in that way")
    return python(bounds=TIGHT, isolated_by=request.param)["run_python"]


@pytest.fixture
def brief(tool: Tool, request: pytest.FixtureRequest) -> Tool:
    """The same, with little time."""
    level = request.node.callspec.params["tool"]
    return python(bounds=replace(TIGHT, seconds=3), isolated_by=level)["run_python"]


def run(tool: Tool, code: str) -> str:
    """What is told of the code; a first line proves that it ran."""
    try:
        told = anyio.run(tool.call, {"code": "print('ran', flush=True)\n" + code})
    except ToolError as error:
        told = str(error)
    assert "ran\n" in told + "\n" or "null bytes" in told, told
    return told.replace("ran\n", "", 1)


@pytest.fixture
def mark() -> str:
    """A word that processes can be found by."""
    return f"m1mark{secrets.token_hex(8)}"


def marked(mark: str) -> list[int]:
    found: list[int] = []
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and mark.encode() in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return [pid for pid in found if pid != os.getpid()]


def gone(mark: str) -> bool:
    limit = time.monotonic() + 5
    while marked(mark) and time.monotonic() < limit:
        time.sleep(0.05)
    return not marked(mark)


@pytest.fixture
def secret(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "secret.txt"
    path.write_text("the word is swordfish")
    yield path
    assert path.read_text() == "the word is swordfish"


# Files


READS = {
    "a file of the user": "open({path!r}).read()",
    "through dots": "open('../' * 20 + {path!r}).read()",
    "through a symbolic link": "import os; os.symlink({path!r}, 'l'); open('l').read()",
    "through a hard link": "import os; os.link({path!r}, 'l'); open('l').read()",
    "through another process": "import subprocess; subprocess.run(['/usr/bin/cat', {path!r}], check=True)",
    "through its root in proc": "open('/proc/self/root' + {path!r}).read()",
    "through the launcher's root": "open('/proc/1/root' + {path!r}).read()",
    "with a memory map": "import mmap, os; mmap.mmap(os.open({path!r}, os.O_RDONLY), 0, prot=1)[:]",
    "through a copy": "import os; os.rename({path!r}, 'stolen'); open('stolen').read()",
    "a listing of its folder": "import os; print(os.listdir(os.path.dirname({path!r})))",
    "ctypes": "import ctypes, os; print(os.read(ctypes.CDLL(None).open({path!r}.encode(), 0), 99))",
}


@pytest.mark.parametrize("code", READS.values(), ids=READS.keys())
def test_no_file_outside_is_read(tool: Tool, secret: Path, code: str) -> None:
    told = run(tool, code.format(path=str(secret)))
    assert "swordfish" not in told and "['secret.txt" not in told
    assert "Exit status" in told


WRITES = {
    "a new file": "open({folder!r} + '/new', 'w')",
    "over a file": "open({path!r}, 'w')",
    "truncated": "import os; os.truncate({path!r}, 0)",
    "removed": "import os; os.remove({path!r})",
    "moved": "import os; os.rename({path!r}, {path!r} + '2')",
    "a folder": "import os; os.mkdir({folder!r} + '/new')",
    "a link planted": "import os; os.symlink('/etc/passwd', {folder!r} + '/new')",
    "a pipe planted": "import os; os.mkfifo({folder!r} + '/new')",
    "a device made": "import os; os.mknod('disk', 0o60600, os.makedev(254, 0)); open('disk', 'rb').read(1)",
    "shared memory of others": "open('/dev/shm/x', 'w'); raise SystemExit(1)",
    "mounted over": "import subprocess; subprocess.run(['mount', '-t', 'tmpfs', 'x', {folder!r}], check=True)",
    "its home's profile": "import os; open(os.path.expanduser('~root/.profile'), 'a').write('x')",
    "this interpreter": "import os; open(os.__file__, 'a').write('x')",
    "a kernel setting": "open('/proc/sys/kernel/hostname', 'w').write('x')",
}


@pytest.mark.parametrize("code", WRITES.values(), ids=WRITES.keys())
def test_nothing_outside_is_written(tool: Tool, secret: Path, code: str) -> None:
    before = sorted(path.name for path in secret.parent.iterdir())
    told = run(tool, code.format(path=str(secret), folder=str(secret.parent)))
    assert "Exit status 1" in told, told
    assert sorted(path.name for path in secret.parent.iterdir()) == before
    assert not Path("/dev/shm/x").exists()


def test_the_temporary_folder_is_its_own(tool: Tool, mark: str) -> None:
    assert run(tool, f"open('/tmp/{mark}', 'w').write('x')\nimport os; print(os.listdir('/tmp'))").count(mark) == 1
    assert not Path(f"/tmp/{mark}").exists()


def test_the_users_files_have_no_names_here(tool: Tool, secret: Path) -> None:
    told = run(tool, f"import os\nprint(*map(os.path.exists, ['/etc/shadow', '/boot', {str(secret)!r}]))")
    assert told == "False False False"


def test_no_socket_file_of_a_service_is_reached(tool: Tool, tmp_path: Path) -> None:
    path = tmp_path / "docker.sock"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        server.setblocking(False)
        assert "FileNotFoundError" in run(tool, f"import socket\nsocket.socket(socket.AF_UNIX).connect({str(path)!r})")
        with pytest.raises(BlockingIOError):
            server.accept()


# Secrets


def test_no_secret_of_the_environment_is_there(tool: Tool, monkeypatch: pytest.MonkeyPatch, mark: str) -> None:
    monkeypatch.setenv("SOME_API_KEY", mark)
    looked = """
import os, glob
print(dict(os.environ))
for name in ['/proc/self/environ', '/proc/1/environ', *glob.glob('/proc/*/environ')]:
    try: print(open(name, 'rb').read())
    except OSError as error: print(error)
"""
    told = run(tool, looked)
    assert "HOME" in told and mark not in told and "SOME_API_KEY" not in told


def test_no_process_of_others_is_seen(tool: Tool) -> None:
    told = run(tool, "import os\nprint(sorted(int(n) for n in os.listdir('/proc') if n.isdigit()))")
    assert told == "[1, 2]"


def test_no_process_of_others_is_killed(tool: Tool) -> None:
    told = run(tool, f"import os\nos.kill({os.getpid()}, 9)")
    assert "ProcessLookupError" in told
    assert "Exit status 137" in run(tool, "import os\ntry: os.kill(-1, 9)\nexcept OSError: os.kill(0, 9)")


def test_it_is_root_of_nothing(tool: Tool) -> None:
    told = run(
        tool, "print([l for l in open('/proc/self/status') if l.startswith(('CapEff', 'CapPrm', 'CapBnd', 'NoNew'))])"
    )
    assert told.count("0000000000000000") == 3 and "NoNewPrivs:\\t1" in told


def test_no_namespace_inside(tool: Tool) -> None:
    told = run(tool, "import ctypes\nc = ctypes.CDLL(None)\nprint(c.unshare(0x00020000), c.setns(0, 0))")
    assert told == "-1 -1"


# Network


SENT = {
    "TCP": "s = socket.create_connection(('127.0.0.1', {port}), 2)",
    "UDP": "s = socket.socket(type=socket.SOCK_DGRAM); s.sendto(b'x', ('127.0.0.1', {port}))",
    "elsewhere": "s = socket.create_connection(('192.0.2.1', 80), 2)",
    "metadata": "import urllib.request; urllib.request.urlopen('http://169.254.169.254/', timeout=2)",
    "a name": "print(socket.getaddrinfo('example.com', 80))",
    "abstract socket": "s = socket.socket(socket.AF_UNIX); s.connect('\\0{name}')",
    "listening": "s = socket.create_server(('127.0.0.1', 0)); raise SystemExit(1)",
    "a raw packet": "socket.socket(socket.AF_PACKET, socket.SOCK_RAW)",
    "netlink": "print(socket.if_nameindex()); raise SystemExit(1)",
}


@pytest.mark.parametrize("code", SENT.values(), ids=SENT.keys())
def test_there_is_no_network(tool: Tool, code: str, mark: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp:
        port = tcp.getsockname()[1]
        udp.bind(("127.0.0.1", port))
        with socket.socket(socket.AF_UNIX) as local:
            local.bind(f"\0{mark}")
            local.listen()
            told = run(tool, "import socket\n" + code.format(port=port, name=mark))
            for server in (tcp, udp, local):
                server.setblocking(False)
            with pytest.raises(BlockingIOError):
                tcp.accept()
            with pytest.raises(BlockingIOError):
                udp.recv(9)
            with pytest.raises(BlockingIOError):
                local.accept()
    assert "Exit status 1" in told, told
    assert "eth0" not in told


# Bounds


def test_a_fork_bomb(brief: Tool) -> None:
    began = time.monotonic()
    bound = run(brief, "int(open('/proc/sys/kernel/pid_max').read())")
    if not bounds_pids() or int(bound) > 400:
        pytest.skip("the kernel would not bound it, and a test must not take the machine down")
    told = run(brief, "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass")
    assert "stopped" in told
    assert time.monotonic() - began < 30


def test_a_thread_bomb(tool: Tool) -> None:
    told = run(
        tool, "import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(60,), daemon=True).start()"
    )
    assert "can't start new thread" in told or "stopped" in told


BOMBS = {
    "one block": "x = bytearray(4 << 30)",
    "a growing list": "x = []\nwhile True: x.append(bytearray(1 << 20))",
    "a text": "'x' * (4 << 30)",
    "anonymous memory": "import mmap; m = mmap.mmap(-1, 4 << 30)",
    "a number": "1 << (1 << 36)",
}


@pytest.mark.parametrize("code", BOMBS.values(), ids=BOMBS.keys())
def test_memory_bombs(tool: Tool, code: str) -> None:
    told = run(tool, code)
    assert any(word in told for word in ("MemoryError", "Cannot allocate", "Exit status", "held more than")), told


def test_memory_spread_over_processes(tool: Tool) -> None:
    told = run(
        tool,
        """
import os, time
for _ in range(12):
    if not os.fork():
        held = bytearray(os.urandom(1 << 20)) * 120
        time.sleep(60)
time.sleep(60)
""",
    )
    assert "held more than 400 MB" in told


def test_shared_pages_are_counted_once(tool: Tool) -> None:
    told = run(
        tool,
        """
import os, time
held = bytearray(150 << 20)
children = []
for _ in range(6):
    child = os.fork()
    if not child:
        time.sleep(1.0)
        os._exit(0)
    children.append(child)
for child in children: os.waitpid(child, 0)
print('done')
""",
    )
    assert told == "done"


DISKS = {
    "a huge file": "f = open('x', 'wb')\nwhile True: f.write(bytes(1 << 20))",
    "many files": "for n in range(10000): open(str(n), 'wb').write(bytes(1 << 20))",
    "allocated": "import os; f = open('x', 'wb'); os.posix_fallocate(f.fileno(), 0, 1 << 40)",
    "shared memory": "for n in range(10000): open('/dev/shm/%d' % n, 'wb').write(bytes(1 << 20))",
}


@pytest.mark.parametrize("code", DISKS.values(), ids=DISKS.keys())
def test_the_disk_is_not_filled(tool: Tool, code: str) -> None:
    told = run(tool, code)
    assert "Exit status" in told or "stopped" in told
    assert not list(Path("/tmp").glob("m1agent-run-*/x"))


def test_output_without_end(tool: Tool) -> None:
    told = run(tool, "while True: print('x' * 1000)")
    assert "printed more than" in told and len(told) < 20_000


def test_output_without_end_past_python(tool: Tool) -> None:
    told = run(tool, "import subprocess; subprocess.run(['yes'])")
    assert "printed more than" in told


def test_closed_streams_do_not_hide_it(brief: Tool) -> None:
    began = time.monotonic()
    told = run(brief, "import os, time\nos.close(1); os.close(2)\ntime.sleep(60)")
    assert "stopped after 3 s" in told
    assert time.monotonic() - began < 20


def test_signals_ignored(brief: Tool, mark: str) -> None:
    told = run(
        brief,
        f"""
import signal, subprocess, sys
for number in range(1, 65):
    try: signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError): pass
subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)', '{mark}'])
while True: pass
""",
    )
    assert "stopped after 3 s" in told
    assert gone(mark)


def test_children_left_behind_are_gone(tool: Tool, mark: str) -> None:
    told = run(
        tool,
        f"import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', '{SLEEP}', '{mark}'])\nprint('left')",
    )
    assert told == "left"
    assert gone(mark)


DAEMON = """
import os, sys, time
if not os.fork():
    os.setsid()
    if not os.fork():
        os.execv(sys.executable, [sys.executable, '-c', 'import time; time.sleep(60)', '{mark}'])
    os._exit(0)
time.sleep(0.5)
print('left')
"""


def test_a_daemon_is_gone(tool: Tool, mark: str) -> None:
    assert run(tool, DAEMON.format(mark=mark)) == "left"
    assert gone(mark)


@pytest.mark.parametrize("level", [Isolation(), Isolation("", landlock=True)], ids=["bounds", "landlock"])
def test_a_daemon_is_gone_without_namespaces_too(level: Isolation, mark: str) -> None:
    if level.landlock and not isolation().landlock:
        pytest.skip("no Landlock here")
    tool = python(bounds=TIGHT, isolated_by=level)["run_python"]
    assert run(tool, DAEMON.format(mark=mark)).startswith("left\nNot isolated on this machine: ")
    assert gone(mark)


@pytest.mark.skipif(not isolation().landlock, reason="no Landlock here")
def test_files_are_bounded_without_namespaces_too(secret: Path) -> None:
    tool = python(bounds=TIGHT, isolated_by=Isolation("", landlock=True))["run_python"]
    assert "PermissionError" in run(tool, f"open({str(secret)!r}).read()")
    assert "PermissionError" in run(tool, f"open({str(secret)!r}, 'w')")


def test_a_pipe_held_open_does_not_hold_up(mark: str) -> None:
    """Without namespaces a program may get out of its group and keep the pipe."""
    tool = python(bounds=TIGHT, isolated_by=Isolation())["run_python"]
    began = time.monotonic()
    assert "left" in run(tool, DAEMON.format(mark=mark))
    assert time.monotonic() - began < 7


def test_nul_bytes_and_what_is_no_text(tool: Tool) -> None:
    assert "null bytes" in run(tool, "print(1)\0")
    told = run(
        tool, "import sys\n_ = sys.stdout.buffer.write(b'a\\x00\\xff\\xfe\\x1b[31mred\\x1b[0m\\x1b]0;title\\x07\\x9b')"
    )
    assert told == "a\\x00\ufffd\ufffdred\ufffd"


def test_a_cancelled_run_ends_its_program(tool: Tool, mark: str) -> None:
    async def main() -> None:
        code = (
            f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', 'import time; time.sleep(60)', '{mark}'])"
        )
        with anyio.move_on_after(1.5):
            await tool.call({"code": code})

    threading.Thread(target=anyio.run, args=(main,)).start()
    limit = time.monotonic() + 5
    while not marked(mark) and time.monotonic() < limit:
        time.sleep(0.02)
    assert marked(mark)
    assert gone(mark)


@pytest.mark.parametrize("level", LEVELS, ids=["root", "user"])
def test_the_program_ends_with_the_process_that_runs_it(level: Isolation, mark: str) -> None:
    if not usable(level):
        pytest.skip("this machine does not isolate in that way")
    script = f"""
import anyio
from m1tools.python import python
from m1tools.sandbox import Isolation
code = "import subprocess, sys; subprocess.run([sys.executable, '-c', '{SLEEP}', '{mark[:6]}' + '{mark[6:]}'])"
anyio.run(python(isolated_by={level!r})['run_python'].call, {{'code': code}})
"""
    parent = subprocess.Popen([sys.executable, "-c", script])
    limit = time.monotonic() + 20
    while not marked(mark) and time.monotonic() < limit:
        time.sleep(0.05)
    found = marked(mark)
    parent.kill()
    parent.wait()
    assert found and gone(mark)
