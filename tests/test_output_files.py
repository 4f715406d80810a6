"""Output goes where the user pointed: a plain file whole or not at all, anything else through."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from lora_doctor.errors import InputError
from lora_doctor.files import Change, check_writable, replace_file, replace_files, write_text
from tests.cli import ROOT, lora_doctor

pytestmark = pytest.mark.skipif(os.name != "posix", reason="POSIX files")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for little more than its folder."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=16k", "none", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("may not mount a file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def test_a_symlink_stays_a_symlink_and_its_target_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    target = tmp_path / "far" / "real.json"
    target.write_text("old")
    target.chmod(0o640)
    link = tmp_path / "link.json"
    link.symlink_to("far/real.json")
    before = target.stat().st_ino
    check_writable(link)
    write_text(link, "new")
    assert link.is_symlink() and target.read_text() == "new"
    assert target.stat().st_ino != before, "replaced whole, not written into"
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    assert names(tmp_path) == ["far", "link.json"] and names(tmp_path / "far") == ["real.json"]


def test_a_symlink_to_nothing_yet_makes_its_target(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to("made")
    write_text(link, "new")
    assert link.is_symlink() and (tmp_path / "made").read_text() == "new"
    circle = tmp_path / "circle"
    circle.symlink_to("circle")
    for write in (check_writable, lambda path: write_text(path, "x")):
        with pytest.raises(InputError, match="circle"):
            write(circle)


def test_a_fifo_is_written_to(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(fifo.read_text()), daemon=True)
    reader.start()
    check_writable(fifo)
    write_text(fifo, "x" * 200_000)
    reader.join(10)
    assert read == ["x" * 200_000]
    assert stat.S_ISFIFO(fifo.stat().st_mode) and names(tmp_path) == ["fifo"]


def test_a_device_is_written_to_and_stays(tmp_path: Path) -> None:
    link = tmp_path / "null"
    link.symlink_to(os.devnull)
    write_text(link, "x")
    write_text(os.devnull, "x")
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode) and link.is_symlink()
    if os.path.exists("/dev/full"):
        with pytest.raises(InputError, match="No space left"):
            write_text("/dev/full", "x")


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
@pytest.mark.parametrize("mode", ["w", "a"])
def test_standard_output_is_written_where_it_stands(tmp_path: Path, name: str, mode: str) -> None:
    """`>> log` keeps what is there, and what comes later follows."""
    if not os.path.exists(name):
        pytest.skip(f"no {name} here")
    file = tmp_path / "log"
    file.write_text("before\n")
    code = (
        "from lora_doctor.files import check_writable, write_text; import os\n"
        f"os.write(1, b'one\\n'); check_writable({name!r}); write_text({name!r}, 'two\\n')\n"
        "os.write(1, b'three\\n')"
    )
    with file.open(mode) as out:
        subprocess.run([sys.executable, "-c", code], stdout=out, check=True, cwd=ROOT)
    assert file.read_text() == ("before\n" * (mode == "a")) + "one\ntwo\nthree\n"
    piped = subprocess.run(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, check=True, cwd=ROOT
    )
    assert piped.stdout == b"one\ntwo\nthree\n"
    assert names(tmp_path) == ["log"]


def test_a_descriptor_that_is_closed_is_told_before_the_work(tmp_path: Path) -> None:
    code = (
        "import os; from lora_doctor.files import check_writable; os.close(1)\n"
        "from lora_doctor.errors import InputError\n"
        "try: check_writable('/dev/fd/1')\n"
        "except InputError as error: os.write(2, str(error).encode())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert "is not open for writing" in done.stderr


def test_the_report_goes_to_dev_stdout_and_to_dev_null(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    options = ("--depth", "static", "--output-format", "json")
    shown = lora_doctor("check", tmp_path, *options, "-o", "/dev/stdout")
    assert shown.out.startswith("{") and shown.out.endswith("}\n"), shown
    silent = lora_doctor("check", tmp_path, *options, "-o", os.devnull)
    assert (silent.code, silent.out) == (shown.code, "")
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)


def test_a_folder_or_a_disk_is_no_output_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder"):
        check_writable(tmp_path)
    with pytest.raises(InputError, match="is a folder"):
        write_text(tmp_path, "x")
    with pytest.raises(InputError, match=r"too long|cannot be written"):
        check_writable(tmp_path / ("x" * 300))
    long = tmp_path / ("ü" * 120)
    write_text(long, "a name that leaves no room for an ending")
    assert names(tmp_path) == [long.name]


def test_a_full_disk_leaves_the_old_file_and_nothing_else(small_disk: Path) -> None:
    file = small_disk / "report.json"
    file.write_text("old")
    with pytest.raises(InputError, match=r"No space left.*make room"):
        write_text(file, "x" * 100_000)
    assert file.read_text() == "old" and names(small_disk) == ["report.json"]
    with pytest.raises(InputError, match="No space left"):
        replace_file(file, b"x" * 100_000)
    assert file.read_text() == "old" and names(small_disk) == ["report.json"]


@pytest.fixture
def mounted_file(tmp_path: Path) -> Iterator[Path]:
    """A file of a folder on which another one is mounted, as `docker run -v FILE:FILE` does."""
    (tmp_path / "elsewhere").mkdir()
    real = tmp_path / "elsewhere" / "real"
    real.write_text("old, and longer than what comes\n")
    (tmp_path / "folder with blank").mkdir()
    file = tmp_path / "folder with blank" / "mine.yaml"
    file.touch()
    command = ["mount", "--bind", str(real), str(file)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("may not mount a file")
    try:
        yield file
    finally:
        subprocess.run(["umount", str(file)], check=True)


def test_a_file_that_is_mounted_by_itself_is_overwritten(mounted_file: Path) -> None:
    """No rename can replace it ("Device or resource busy"); its old content is kept."""
    real = mounted_file.parents[1] / "elsewhere" / "real"
    write_text(mounted_file, "new")
    assert real.read_text() == "new" and names(mounted_file.parent) == ["mine.yaml"]
    backup = replace_file(mounted_file, b"newer, and longer than that")
    assert backup is not None and backup.read_text() == "new"
    assert real.read_text() == "newer, and longer than that"
    assert names(mounted_file.parent) == ["mine.yaml", "mine.yaml.bak"]


@pytest.mark.parametrize("fails", ["write", "next file"])
def test_a_mounted_file_is_put_back(
    mounted_file: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    real = mounted_file.parents[1] / "elsewhere" / "real"
    other = mounted_file.with_name("other")
    calls = 0

    def fsync(handle: int, fsync=os.fsync) -> None:  # type: ignore[no-untyped-def]
        nonlocal calls
        if os.fstat(handle).st_ino == real.stat().st_ino and (calls := calls + 1) == 1:
            raise OSError(5, "Input/output error")
        fsync(handle)

    def replace(old: Path, new: Path, replace=os.replace) -> None:  # type: ignore[no-untyped-def]
        if new == other:
            raise OSError(5, "Input/output error")
        replace(old, new)

    if fails == "write":
        monkeypatch.setattr(os, "fsync", fsync)
    else:
        monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(InputError, match="Input/output error"):
        replace_files([Change(mounted_file, b"new"), Change(other, b"x")])
    assert real.read_text() == "old, and longer than what comes\n"
    assert names(mounted_file.parent) == ["mine.yaml"]


KILLED_IN_PLACE = """
import os, signal, sys
from pathlib import Path
from lora_doctor import files
from lora_doctor.prescription.journal import journal
file, when = Path(sys.argv[1]), sys.argv[2]
def killing(target, data):
    half = data[:3] + target.read_bytes()[3:] if when == "half" else data
    real(target, half)
    os.kill(os.getpid(), signal.SIGKILL)
real, files._overwrite = files._overwrite, killing
change = files.Change(file, b"new content\\n")
files.replace_files([change], journal=lambda steps: journal(file, steps))
"""


@pytest.mark.parametrize("when", ["half", "whole"])
def test_a_kill_while_a_mounted_file_is_written_can_be_undone(
    mounted_file: Path, when: str
) -> None:
    from lora_doctor.prescription.journal import _is_mounted, unfinished

    assert _is_mounted(mounted_file) and not _is_mounted(mounted_file.parent / "other")
    command = [sys.executable, "-c", KILLED_IN_PLACE, str(mounted_file), when]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    said = unfinished(mounted_file, ())
    if when == "whole":
        assert "stopped when all was written; to tidy up" in said
        return
    assert "half written" in said
    undo = said.split("to undo it: ")[1]
    subprocess.run(undo, shell=True, check=True)
    assert mounted_file.read_text() == "old, and longer than what comes\n"
    assert names(mounted_file.parent) == ["mine.yaml", "mine.yaml.bak"]
    assert not unfinished(mounted_file, ())


def test_several_files_are_replaced_together_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever rename fails, and whatever fails with it."""
    first, second, third = (tmp_path / name for name in ("a", "b", "new"))
    for fails_at in range(4):
        for error in (OSError(5, "Input/output error"), KeyboardInterrupt()):
            first.write_text("old a")
            second.write_text("old b")
            calls = 0

            def replace(  # type: ignore[no-untyped-def]
                old: Path, new: Path, at: int = fails_at, raised=error, real=os.replace
            ) -> None:
                nonlocal calls
                calls += 1
                if calls == at + 1 and at < 3:
                    raise raised
                real(old, new)

            with monkeypatch.context() as patched:
                patched.setattr(os, "replace", replace)
                changes = [Change(first, b"1"), Change(second, b"2"), Change(third, b"3")]
                if fails_at == 3:
                    backups = replace_files(changes)
                else:
                    with pytest.raises((InputError, KeyboardInterrupt)):
                        replace_files(changes)
            if fails_at < 3:
                assert (first.read_text(), second.read_text()) == ("old a", "old b")
                assert names(tmp_path) == ["a", "b"], "no backup, no temporary file"
            else:
                assert [path.read_text() for path in (first, second, third)] == ["1", "2", "3"]
                assert backups[first] == tmp_path / "a.bak" and backups[third] is None
                assert (tmp_path / "b.bak").read_text() == "old b"
                for path in tmp_path.iterdir():
                    path.unlink()


def test_where_there_are_no_links_the_backup_is_a_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    file = tmp_path / "recipe.yaml"
    file.write_text("r: 1\n")
    assert replace_file(file, b"r: 2\n") == tmp_path / "recipe.yaml.bak"
    assert (tmp_path / "recipe.yaml.bak").read_text() == "r: 1\n"
    assert names(tmp_path) == ["recipe.yaml", "recipe.yaml.bak"]


def test_a_second_name_that_stays_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the old file's other name cannot be removed, everything is written all the same."""
    path = tmp_path / "recipe.json"
    path.write_bytes(b"old")
    unlink = Path.unlink

    def refuses(self: Path, missing_ok: bool = False) -> None:
        if self.read_bytes() == b"old":
            raise PermissionError(1, "Operation not permitted", str(self))
        unlink(self, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", refuses)
    backup = replace_file(path, b"new")
    assert path.read_bytes() == b"new"
    assert backup is not None and backup.read_bytes() == b"old"


def test_a_system_without_owners(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "recipe.json"
    path.write_bytes(b"old")
    monkeypatch.delattr(os, "chown")
    replace_file(path, b"new")
    assert path.read_bytes() == b"new"
