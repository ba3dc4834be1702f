"""Directories of one server: private, and removed by who made them."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from mpserve.state import rundir
from tests.running import eventually


def run(code: str, *arguments: str) -> str:
    program = "import os, sys\nfrom mpserve.state import rundir\n" + textwrap.dedent(code)
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_each_is_private_and_is_removed_when_its_maker_ends_and_not_when_a_child_ends() -> None:
    made = run("""
        first, second = rundir.make("x"), rundir.make("x")
        assert first != second and first.stat().st_mode & 0o777 == 0o700
        (first / "file").touch()
        if os.fork() == 0:
            sys.exit()
        os.wait()
        assert first.is_dir()
        print(first, second)
    """).split()
    assert [Path(directory).exists() for directory in made] == [False, False]


def test_nowhere_to_write_is_told_in_words() -> None:
    told = run("""
        import tempfile
        rundir.MEMORY = tempfile.tempdir = "/nowhere"
        try:
            rundir.make("x")
        except rundir.ConfigurationError as error:
            print(error)
    """)
    assert "nowhere to write" in told
    assert "TMPDIR" in told


def test_it_can_be_removed_before_and_by_the_last_to_leave(tmp_path: Path) -> None:
    code = """
        first, second = rundir.make("x", sys.argv[1]), rundir.make("x", sys.argv[1])
        rundir.remove(first)
        assert not first.exists() and second.is_dir()
        if os.fork() == 0:
            rundir.remove_all()
            os._exit(0)
        os.wait()
        assert not second.exists()
    """
    run(code, str(tmp_path))


def test_a_place_that_cannot_be_written_in_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        rundir.make("x", str(tmp_path / "missing"))


def test_a_file_is_replaced_whole_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    file = tmp_path / "file"
    for content in (b"one", b"two"):
        rundir.replace(file, content)
        assert file.read_bytes() == content
    assert list(tmp_path.iterdir()) == [file]


def test_what_a_killed_server_has_left_is_removed_at_the_next_start_when_its_last_process_is_gone(
    tmp_path: Path,
) -> None:
    code = """
        made = rundir.make("x", sys.argv[1])
        (made / "file").touch()
        worker = os.fork()
        if worker == 0:
            import signal
            os.close(1), os.close(2)
            signal.pause()
        print(made, worker, flush=True)
        os.kill(os.getpid(), 9)
    """
    program = "import os, sys\nfrom mpserve.state import rundir\n" + textwrap.dedent(code)
    killed = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=False)
    made, worker = killed.stdout.split()
    foreign = tmp_path / "mpserve-x-of-somebody"
    foreign.mkdir()

    def started() -> bool:
        """Start another server there; returns whether the directory is left."""
        run('rundir.make("x", sys.argv[1])', str(tmp_path))
        return Path(made).exists()

    try:
        assert started()
    finally:
        os.kill(int(worker), signal.SIGKILL)
    eventually(lambda: not started())
    assert list(tmp_path.iterdir()) == [foreign]
