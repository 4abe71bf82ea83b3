"""One command in a sandbox: a forked process with limits, whose every reach is noted.

A command may read its own folder and the programs of the machine, write its own folder, and start
nothing. A folder `outside` beside it holds files that no command has a reason to open.
"""

import io
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

SECONDS = 10
MEMORY = 2**30

# What starts a program, or builds whatever object a file names.
PROGRAMS = {
    "os.exec",
    "os.fork",
    "os.forkpty",
    "os.posix_spawn",
    "os.spawn",
    "os.system",
    "pickle.find_class",
    "subprocess.Popen",
}
# Audit events that change a file, and how many of their arguments are paths.
CHANGES = {
    "os.chmod": 1,
    "os.chown": 1,
    "os.link": 2,
    "os.mkdir": 1,
    "os.remove": 1,
    "os.rename": 2,
    "os.rmdir": 1,
    "os.symlink": 2,
    "os.truncate": 1,
    "os.utime": 1,
    "shutil.rmtree": 1,
}
# What every process may write.
DEVICES = {"/dev/null", "/dev/tty"}
# Files of the machine that hostile lists like to name.
FORBIDDEN = ("/etc/hostname", "/etc/passwd", "/proc/self/environ")
# Commands whose answer is a list of what is wrong, with exit code 1.
CHECKS = ("verify", "data")
# What a killed or failed command must not leave.
LEFTOVERS = (".part", ".new", ".tmp")


@dataclass(frozen=True)
class Outcome:
    """What a command did. `code` is None where it was ended by `signal`; memory is in bytes."""

    code: int | None
    signal: int
    stdout: str
    stderr: str
    seconds: float
    memory: int
    new: list[str]
    gone: list[str]
    reached: list[str]


def snapshot(folder: Path) -> dict[str, int]:
    """Every entry below a folder, with its size; links are not followed."""
    entries = {}
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = os.path.join(place, name)
            entries[os.path.relpath(path, folder)] = os.lstat(path).st_size
    return entries


def run(words: list[str], home: Path) -> Outcome:
    """Run `cliad` with these words in the folder `home`.

    `unpack ARCHIVE FOLDER` is what `cliad data download` does with an archive that it has fetched.
    """
    return run_and_end(words, home)


def run_and_end(
    words: list[str], home: Path, after: float | None = None, number: int = signal.SIGKILL
) -> Outcome:
    """The same; the command gets the signal `number` so many seconds `after` its start."""
    before = snapshot(home)
    logs = Path(tempfile.mkdtemp())
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        _become(words, home, logs)  # never returns
    if after is not None:
        time.sleep(after)
        os.kill(child, number)  # a child that has ended is there until it is waited for
    # Twice the limit: time that other processes took is not the command's.
    status, usage = _wait(child, started + 2 * SECONDS)
    seconds = usage.ru_utime + usage.ru_stime
    if os.WIFSIGNALED(status):
        seconds = time.monotonic() - started
    after = snapshot(home)
    outcome = Outcome(
        code=os.WEXITSTATUS(status) if os.WIFEXITED(status) else None,
        signal=os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0,
        stdout=_text_of(logs / "out"),
        stderr=_text_of(logs / "err"),
        seconds=seconds,
        memory=usage.ru_maxrss * 1024 - _number_in(logs / "memory"),
        new=sorted(set(after) - set(before)),
        gone=sorted(set(before) - set(after)),
        reached=_text_of(logs / "reached").splitlines(),
    )
    shutil.rmtree(logs)
    return outcome


def _text_of(file: Path) -> str:
    """What a process has written; nothing where it was ended before it began."""
    return file.read_text(errors="surrogateescape") if file.exists() else ""


def _number_in(file: Path) -> int:
    return int(_text_of(file) or 0)


def _memory_now() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _wait(child: int, until: float):
    while time.monotonic() < until:
        done, status, usage = os.wait4(child, os.WNOHANG)
        if done:
            return status, usage
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    _, status, usage = os.wait4(child, 0)
    return status, usage


def _become(words: list[str], home: Path, logs: Path) -> None:
    """The rest of the forked process: the command, then its end."""
    # What Python compiles of packages at their first import is none of the command's files.
    sys.dont_write_bytecode = True
    code = 70
    has_begun = False
    try:
        for number, name in ((1, "out"), (2, "err")):
            descriptor = os.open(logs / name, os.O_WRONLY | os.O_CREAT, 0o600)
            os.dup2(descriptor, number)
        sys.stdin = io.StringIO()
        sys.stdout = _writing_to(1)
        sys.stderr = _writing_to(2)
        # Pages that the process had from its parent are not the command's.
        (logs / "memory").write_text(str(_memory_now()))
        reached = os.open(logs / "reached", os.O_WRONLY | os.O_CREAT, 0o600)
        os.chdir(home)
        os.environ |= {"HOME": str(home), "CLIAD_CACHE": str(home / "caches"), "COLUMNS": "200"}
        for name in ("CLIAD_DATA", "CLIAD_DEBUG"):
            os.environ.pop(name, None)
        # A mistake of ours must not take the machine's memory.
        grown = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (grown + 8 * MEMORY, grown + 8 * MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        from cliad.__main__ import main

        if words[0] == "unpack":
            main = _unpacking(*words[1:])
        sys.argv = ["cliad", *words]
        sys.addaudithook(_auditor(home, reached))
        has_begun = True
        try:
            main()
            code = 0
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException as error:
        # Ctrl-C before the program has begun is not the program's.
        if isinstance(error, KeyboardInterrupt) and not has_begun:
            os._exit(130)
        traceback.print_exc()
    with suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def _writing_to(descriptor: int) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.FileIO(descriptor, "w", closefd=False), "utf-8", write_through=True)


def _unpacking(archive: str, folder: str) -> Callable[[], None]:
    """Unpacking as a command: an error of ours is one line and exit code 1."""
    from cliad.cache.datasets.archives import unpack
    from cliad.errors import CliadError

    def main() -> None:
        try:
            unpack(Path(archive), Path(folder))
        except CliadError as error:
            print("cliad:", " ".join(str(error).split()), file=sys.stderr)
            sys.exit(1)

    return main


def _auditor(home: Path, reached: int) -> Callable[[str, tuple], None]:
    """A hook that writes what a command must not do to the open file `reached`."""
    inside = os.path.realpath(home)
    outside = os.path.join(os.path.dirname(inside), "outside")

    def note(event: str, path: object) -> None:
        os.write(reached, f"{event} {path!r}\n".encode(errors="backslashreplace"))

    def is_below(path: str, folder: str) -> bool:
        return path == folder or path.startswith(folder + os.sep)

    def look(event: str, args: tuple) -> None:
        if event in PROGRAMS:
            note(event, args[:1])
        elif event == "open" and isinstance(args[0], str | bytes):
            path = os.path.realpath(os.fsdecode(args[0]))
            writes = bool(args[2] and args[2] & (os.O_WRONLY | os.O_RDWR))
            is_ours = is_below(path, inside) or path in DEVICES
            if is_below(path, outside) or path in FORBIDDEN or (writes and not is_ours):
                note("open", path)
        elif event in CHANGES:
            for path in args[: CHANGES[event]]:
                if not isinstance(path, str | bytes | os.PathLike):
                    continue  # a descriptor of a file that is open already
                # A link is changed itself, not what it leads to.
                folder, name = os.path.split(os.path.abspath(os.fsdecode(path)))
                # The second path of a link is its own; the first may be any text.
                if not is_below(os.path.join(os.path.realpath(folder), name), inside):
                    note(event, path)

    return look


def complaints(outcome: Outcome, command: str) -> list[str]:
    """Everything that a command did and must not do, a line each."""
    is_answer = command.startswith(CHECKS) and bool(outcome.stdout)
    lines = [f"reached {what}" for what in outcome.reached]
    lines += [f"removed {name}" for name in outcome.gone]
    if outcome.code is None:
        lines.append(f"ended by signal {outcome.signal} after {outcome.seconds:.1f} s")
    elif outcome.code not in (0, 1, 2):
        lines.append(f"exit code {outcome.code}")
    if outcome.seconds > SECONDS:
        lines.append(f"took {outcome.seconds:.1f} s")
    if outcome.memory > MEMORY:
        lines.append(f"took {outcome.memory / MEMORY:.1f} GiB")
    if "Traceback" in outcome.stderr or "fault in cliad" in outcome.stderr:
        lines.append("a fault in cliad")
    if any(letter in outcome.stdout + outcome.stderr for letter in "\x1b\x07\x08\r"):
        lines.append("a control character reached the terminal")
    if outcome.code == 1 and not is_answer:
        errors = [line for line in outcome.stderr.splitlines() if line.startswith("cliad: ")]
        if len(errors) != 1 or not outcome.stderr.rstrip().endswith(errors[0].rstrip()):
            lines.append(f"{len(errors)} lines of error")
        # Unpacking again overwrites what a damaged archive gave.
        if not command.startswith("unpack"):
            lines += [f"left {name}" for name in outcome.new]
    left = [name for name in outcome.new if name.endswith(LEFTOVERS)]
    return lines + [f"left {name}" for name in left if outcome.code != 1]
