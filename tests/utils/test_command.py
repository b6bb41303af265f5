"""What all command lines do alike, in processes of their own that load little."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from pfray.errors import ConfigError
from pfray.utils.command import resume_hint, run_command

ROOT = Path(__file__).resolve().parents[2]
EXPERIMENT = str(ROOT / "experiments" / "mobilenet_sparse.yaml")


def start(arguments: list[str], **keywords: object) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, *arguments],
        stderr=subprocess.PIPE,
        # Tests that were started in the background are deaf to Ctrl-C, and so would be what they start.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        **keywords,  # type: ignore[call-overload]
    )


def code(text: str, *arguments: str, **keywords: object) -> tuple[int, str]:
    """(exit code, stderr) of a program that begins as pfray's do."""
    begun = f"import os, signal, sys\nfrom pfray.utils import command\ncommand.begin('Then this')\n{text}"
    process = start(["-c", begun, *arguments], **{"cwd": ROOT, **keywords})
    errors = process.communicate(timeout=300)[1].decode()
    return process.returncode, errors


@pytest.mark.parametrize(("stop", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("module", ["run", "submit", "inspect"])
def test_a_signal_during_a_programs_own_imports_is_one_line(tmp_path, module, stop, exit_code):
    # The first of its dependencies that it imports.
    for name in ("rich", "yaml", "pydantic"):
        (tmp_path / f"{name}.py").write_text("import signal, sys\nprint('importing', flush=True)\nsignal.pause()\n")
    paths = os.pathsep.join([str(tmp_path), str(ROOT)])
    process = start(
        ["-m", f"pfray.{module}", EXPERIMENT, "seed=1"], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": paths}
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"importing\n"
    process.send_signal(stop)
    errors = process.communicate(timeout=300)[1].decode()
    then = f". Continue with: python -m pfray.run {EXPERIMENT} seed=1 --resume" if module == "run" else ""
    assert (process.returncode, errors) == (exit_code, f"interrupted{then}\n")


def test_a_library_does_not_keep_the_signals_it_takes_and_a_second_sigterm_changes_nothing():
    ended, errors = code(
        "with command.own_signals():\n"
        "    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))\n"
        "    signal.signal(signal.SIGUSR1, signal.SIG_IGN)\n"
        "assert signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN\n"
        "def action():\n"
        "    try:\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "    finally:\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "        print('cleaned up', file=sys.stderr)\n"
        "command.run_command(action, [], 'Then that')\n"
    )
    assert (ended, errors) == (143, "cleaned up\ninterrupted. Then that\n")


def test_what_c_has_taken_is_ours_again():
    # PyOS_setsig is sigaction, which Python's own record of handlers does not see.
    ended, errors = code(
        "import ctypes\n"
        "ctypes.pythonapi.PyOS_setsig(signal.SIGTERM, 0)\n"
        "command.take_signals()\n"
        "os.kill(os.getpid(), signal.SIGTERM)\n"
    )
    assert (ended, errors) == (143, "interrupted. Then this\n")


def test_a_fork_dies_of_sigterm_as_any_process_does():
    ended, errors = code(
        "if not (child := os.fork()):\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    os._exit(0)\n"
        "sys.exit(os.WTERMSIG(os.waitpid(child, 0)[1]))\n"
    )
    assert (ended, errors) == (signal.SIGTERM, "")


def test_ctrl_c_stays_ignored_where_the_shell_has_it_so():
    process = subprocess.run(
        [sys.executable, "-c", "import os, signal\nfrom pfray.utils import command\ncommand.begin()\n"
         "os.kill(os.getpid(), signal.SIGINT)"],
        cwd=ROOT, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN), timeout=300, check=False,
    )  # fmt: skip
    assert process.returncode == 0


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_without_a_reader_a_command_goes_on_and_says_so_once(unbuffered):
    reader, writer = os.pipe()
    os.close(reader)
    ended, errors = code(
        "for _ in range(3):\n    print('x' * 100_000, flush=True)\nos.write(1, b'x')\nsys.exit(7)\n",
        stdout=writer, env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
    )  # fmt: skip
    os.close(writer)
    assert (ended, errors) == (7, "note: standard output is closed; the command goes on without it\n")


def test_a_name_that_the_locale_has_no_letters_for_is_said_to_be_one(tmp_path):
    plain = {name: value for name, value in os.environ.items() if name not in ("PYTHONIOENCODING", "LANG")}
    env = {**plain, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": str(ROOT)}
    check = "sys.exit(command.run_command(lambda: 0, sys.argv[1:]))"
    folder = tmp_path / "опыты"
    folder.mkdir()

    remedy = "is no name in ascii, this machine's encoding. Remedy: PYTHONUTF8=1 in the environment, or another name"
    ended, errors = code(check, "опыт.yaml", env=env)
    assert (ended, errors) == (2, rf"error: '\u043e\u043f\u044b\u0442.yaml' {remedy}" + "\n")
    ended, errors = code(check, env=env, cwd=folder)
    assert ended == 2
    assert errors.endswith(rf"\u043e\u043f\u044b\u0442\u044b' {remedy}" + "\n")
    ended, errors = code("from pfray.config.strict_yaml import parse\nprint(parse('storage: \\u043e'))", env=env)
    assert ended == 1
    assert r"column 10 ('\u043e' cannot be written in ascii, this machine's encoding: set PYTHONUTF8=1)" in errors


def test_a_working_directory_that_is_gone_is_one_line(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    assert run_command(lambda: 0, []) == 2
    assert "the working directory is gone (No such file or directory)" in capsys.readouterr().err


def test_errors_become_exit_codes_and_faults_of_ours_stay_tracebacks(capsys):
    def raises(error: BaseException) -> int:
        def action() -> int:
            raise error

        return run_command(action, [], "Continue with: this")

    assert raises(ConfigError("one\ntwo")) == 2
    assert capsys.readouterr().err == "error: one\nerror: two\n"
    assert raises(OSError(errno.ENOSPC, "No space left on device", "model.packed")) == 1
    assert capsys.readouterr().err == (
        "error: model.packed cannot be written (No space left on device). Remedy: free space or permission there. "
        "Continue with: this\n"
    )
    # A fault of ours comes through no code but pfray's.
    with pytest.raises(ZeroDivisionError):
        run_command(partial(eval, "1 / 0", {}), [])
    with pytest.raises(SystemExit):  # --help
        run_command(partial(sys.exit, 0), [])


def test_an_error_of_the_users_code_names_its_line(capsys):
    def action() -> int:
        raise KeyError("label")

    assert run_command(action, []) == 1
    line = rf"error: KeyError: 'label' \({__file__}, line \d+\)\. Remedy: mend the code there, .*\n"
    assert re.fullmatch(line, capsys.readouterr().err)


def test_a_run_goes_on_with_the_arguments_it_had():
    assert resume_hint("pfray run", ["a b.yaml", "--force", "search.trials=3"]) == (
        "Continue with: pfray run 'a b.yaml' search.trials=3 --resume"
    )
    assert resume_hint("pfray run", ["a.yaml", "--show"]) == ""
    assert resume_hint("pfray run", ["a.yaml", "--check"]) == ""
    assert "TOKEN" not in resume_hint("pfray run", ["a.yaml", "storage=s3://TOKEN@bucket/runs"])
    hint = resume_hint("pfray run", ["a.yaml", "storage=s3://bucket/r@1"])
    assert hint.endswith("a.yaml storage=s3://bucket/r@1 --resume")
