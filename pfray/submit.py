"""Jobs on a Ray cluster, one per experiment: ``pfray submit experiments/*.yaml --address http://...``.

A job runs ``pfray.run`` on the cluster and outlives this command. Its id is kept in a hidden file next to the run
folder.
"""

from __future__ import annotations

import sys

from pfray.utils import command

if __name__ == "__main__":
    command.begin()

import argparse
import json
import secrets
import shlex
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pfray.cluster import jobs
from pfray.config import schema
from pfray.errors import ConfigError, UnknownJob, shown
from pfray.utils.files import write_atomically
from pfray.workflow.experiment_file import load_experiment

if TYPE_CHECKING:
    from pfray.storage.run_folder import RunFolder

DEFAULT_ADDRESS = "http://127.0.0.1:8265"


@dataclass(frozen=True)
class Request:
    """A job to send. name: of the experiment. ticket: file for the job's id. entrypoint: the job's command."""

    name: str
    ticket: Path
    entrypoint: str


@dataclass(frozen=True)
class Ticket:
    """Content of the file that records a sent job."""

    job: str
    address: str
    entrypoint: str


def main(arguments: Sequence[str] | None = None, program: str = "python -m pfray.submit") -> int:
    """Exit code: 0, with --wait the highest of the jobs; 2 for a wrong request, 1 for a failure."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    then = "The jobs that were sent go on; --status asks after them, --stop ends them"
    return command.run_command(partial(_main, given, program), given, then)


def _main(arguments: Sequence[str], program: str) -> int:
    options = _parser(program).parse_intermixed_args(arguments)
    overrides = [text for text in options.experiments if "=" in text]
    names = [text for text in options.experiments if "=" not in text]
    if options.status or options.stop:
        return _ask(names, overrides, options)
    return _send([_request(Path(name), overrides, options) for name in names], options)


def _request(path: Path, overrides: Sequence[str], options: argparse.Namespace) -> Request:
    """The job of an experiment file. Raises ConfigError for every mistake in it, before anything is sent."""
    experiment = load_experiment(path, overrides)
    working_dir = options.working_dir.resolve()
    if not path.resolve().is_relative_to(working_dir):
        raise ConfigError(
            f"{path} is not in the working directory {working_dir}, which is all that a job sees. "
            "Remedy: --working-dir with a folder that holds it"
        )
    # A job runs in a copy of the working directory that is removed after it.
    run = _run_folder(experiment)
    storage = experiment.storage if run.url else run.path.parent
    entrypoint = [
        "python", "-m", "pfray.run", str(path.resolve().relative_to(working_dir)), *overrides, f"storage={storage}",
        *(["--resume"] if options.resume else []), *(["--force"] if options.force else []),
    ]  # fmt: skip
    return Request(experiment.name, run.job, shlex.join(entrypoint))


def _send(requests: Sequence[Request], options: argparse.Namespace) -> int:
    if not requests:
        raise ConfigError("no experiment is given. Example: python -m pfray.submit experiments/mobilenet_sparse.yaml")
    names = [request.name for request in requests]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(
            f"two experiments are named {shown(twice)}, which is one run folder. Remedy: another name: in one"
        )
    if options.requirements is not None and not options.requirements.is_file():
        raise ConfigError(f"--requirements: {options.requirements} is not a file. Remedy: a file that pip reads")
    address = options.address or DEFAULT_ADDRESS
    client = jobs.connect(address)
    shipped = jobs.environment(options.working_dir.resolve(), options.requirements)
    sent = {}
    for request in requests:
        job = f"pfray-{request.name}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
        jobs.submit(client, job, request.entrypoint, shipped)
        request.ticket.parent.mkdir(parents=True, exist_ok=True)
        ticket = Ticket(job, address, request.entrypoint)
        write_atomically(request.ticket, json.dumps(asdict(ticket), indent=2))
        print(f"{request.name}: {job}", flush=True)
        sent[request.name] = job
    if not options.wait:
        return 0
    several = len(sent) > 1
    codes = jobs.follow(
        client, sent, lambda name, line: print(f"[{name}] {line}" if several else line, flush=True)
    )
    for name, code in codes.items():
        print(f"{name}: exit code {code}")
    return max(codes.values(), key=abs)


def _ask(names: Sequence[str], overrides: Sequence[str], options: argparse.Namespace) -> int:
    """--status and --stop of experiments, or of job ids."""
    if not names:
        raise ConfigError("no experiment and no job id is given. Example: python -m pfray.submit exp.yaml --status")
    found = {name: _ticket(Path(name), overrides) if Path(name).exists() else None for name in names}
    clients: dict[str, Any] = {}
    for name, ticket in found.items():
        job = name if ticket is None else ticket.job
        # The address it was sent to, unless --address names another: the cluster's address may have changed.
        address = options.address or (DEFAULT_ADDRESS if ticket is None else ticket.address)
        client = clients[address] = clients.get(address) or jobs.connect(address)
        if options.stop:
            done = "stopped" if jobs.stop(client, job) else "had ended already"
            print(f"{name}: {job} {done}")
        else:
            details = jobs.details(client, job)
            code = "" if details.driver_exit_code is None else f", exit code {details.driver_exit_code}"
            print(f"{name}: {job} {details.status.value}{code}")
    return 0


def _ticket(path: Path, overrides: Sequence[str]) -> Ticket:
    file = _run_folder(schema.load(path, overrides)).job
    try:
        return Ticket(**json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise UnknownJob(
            f"{path} has not been sent from here: {file} cannot be read. Remedy: the job's id instead of the file"
        ) from error


def _run_folder(experiment: schema.Experiment) -> RunFolder:
    from pfray.storage.run_folder import RunFolder

    return RunFolder.at(experiment.storage, experiment.name)


def _parser(program: str) -> argparse.ArgumentParser:
    parser = command.make_parser(
        program,
        "Run experiments as jobs of a Ray cluster, one each.",
        ["experiments/mobilenet_sparse.yaml search.trials=60 --wait", "experiments/mobilenet_sparse.yaml --status"],
    )
    parser.add_argument(
        "experiments", nargs="*", metavar="experiment",
        help="experiment files and key=value overrides of all of them; with --status and --stop job ids, too",
    )  # fmt: skip
    parser.add_argument(
        "--address", help=f"of the cluster's dashboard (default: {DEFAULT_ADDRESS}, or that of the kept job)"
    )
    parser.add_argument("--working-dir", type=Path, default=Path(), help="the folder that is sent along (default: .)")
    parser.add_argument("--requirements", type=Path, help="what pip installs for the job, a requirements file")
    parser.add_argument("--resume", action="store_true", help="continue runs that were interrupted")
    parser.add_argument("--force", action="store_true", help="replace the runs that the run folders hold")
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--wait", action="store_true", help="show the logs until all end; the exit code is theirs")
    action.add_argument("--status", action="store_true", help="print the state of the jobs")
    action.add_argument("--stop", action="store_true", help="stop the jobs")
    return parser


if __name__ == "__main__":
    sys.exit(main())
