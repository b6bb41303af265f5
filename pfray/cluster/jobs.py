"""Jobs on a Ray cluster's job server: submit, status, logs, stop.

Ray's client waits for ever for an address that does not answer, so every address is tried first.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pfray.cluster import access
from pfray.errors import TOKEN_REMEDY, ClusterError, ConfigError, UnknownJob, first_line
from pfray.utils.url import check_address

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

# Seconds for an address to answer.
ANSWER_TIMEOUT = 10
# Files of a working directory that no job needs. Files in .gitignore are not sent either.
NOT_SENT = [".git", ".venv*", "runs", "**/__pycache__", ".pytest_cache", ".mypy_cache", ".ruff_cache"]
# Seconds that a newly started cluster may take until it can start jobs, and between two attempts.
STARTUP_TIMEOUT, PAUSE = 60.0, 1.0
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")


def connect(address: str) -> JobSubmissionClient:
    """Client of the job server at ``address``.

    Raises ConfigError for an address that contains a secret and for a token that cannot be read, ClusterError if no
    server answers or it refuses the token.
    """
    try:
        check_address(address)
    except ValueError as error:
        raise ConfigError(f"--address: {error}") from error
    access.check_token()
    try:
        # A refusal is an answer too; the client below reports it.
        with contextlib.suppress(urllib.error.HTTPError):
            urllib.request.urlopen(f"{address.rstrip('/')}/api/version", timeout=ANSWER_TIMEOUT).close()
    except (OSError, ValueError) as error:
        raise ClusterError(
            f"--address: no job server answers at {address!r} ({first_line(error)}). Remedy: the address of the "
            "cluster's dashboard, such as http://127.0.0.1:8265, through 'ray dashboard cluster.yaml' or a tunnel"
        ) from error
    from ray.job_submission import JobSubmissionClient

    access.show_token()
    # Ray silently prefers these variables to the given address.
    hidden = {name: os.environ.pop(name) for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS") if name in os.environ}
    try:
        with _refusals(address):
            return JobSubmissionClient(address)
    finally:
        os.environ.update(hidden)


def environment(working_dir: Path, requirements: Path | None) -> dict[str, Any]:
    """Runtime environment of a job: the working directory, pfray if it is not in there, and requirements for pip."""
    import pfray

    # The learners and environments that an experiment names are next to the package.
    home = Path(pfray.__file__).parent.parent
    shipped: dict[str, Any] = {"working_dir": str(working_dir), "excludes": NOT_SENT}
    if not home.is_relative_to(working_dir):
        shipped["py_modules"] = [str(home / name) for name in ("pfray", "envs", "learners")]
    if requirements is not None:
        shipped["pip"] = str(requirements)
    return shipped


def submit(client: JobSubmissionClient, job: str, entrypoint: str, shipped: Mapping[str, Any]) -> None:
    """Send a job. Raises ClusterError if the server refuses it, for example for too large a working directory."""
    deadline = time.monotonic() + STARTUP_TIMEOUT
    while True:
        try:
            with _refusals(client.get_address()):
                client.submit_job(entrypoint=entrypoint, submission_id=job, runtime_env=dict(shipped))
            return
        except ClusterError as error:
            # A cluster answers before it can start a job.
            if "No available agent" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(PAUSE)


def details(client: JobSubmissionClient, job: str) -> JobDetails:
    """The server's record of a job. Raises UnknownJob, ClusterError."""
    with _refusals(client.get_address(), job):
        return client.get_job_info(job)


def stop(client: JobSubmissionClient, job: str) -> bool:
    """Stop a job. Returns False if it had ended already. Raises UnknownJob, ClusterError."""
    with _refusals(client.get_address(), job):
        return client.stop_job(job)


def follow(client: JobSubmissionClient, jobs: Mapping[str, str], say: Callable[[str, str], None]) -> dict[str, int]:
    """Exit code of each job, by name, once all have ended. say(name, line) is called for every line of a log.

    A job that was stopped, or that ended before its command could start, has exit code 1. Raises ClusterError.
    """

    async def tail(name: str, job: str) -> None:
        rest = ""
        async for chunk in client.tail_job_logs(job):
            *lines, rest = (rest + chunk).split("\n")
            for line in lines:
                say(name, line)
        if rest:
            say(name, rest)

    async def tail_all() -> None:
        await asyncio.gather(*(tail(name, job) for name, job in jobs.items()))

    with _refusals(client.get_address()):
        asyncio.run(tail_all())
    return {name: _exit_code(client, name, job, say) for name, job in jobs.items()}


def _exit_code(client: JobSubmissionClient, name: str, job: str, say: Callable[[str, str], None]) -> int:
    # A log ends a moment before its job does.
    while (found := details(client, job)).status.value not in ENDED:
        time.sleep(0.2)
    if found.driver_exit_code is None:
        say(name, f"{found.status.value}: {found.message}")
        return 1
    return int(found.driver_exit_code)


@contextlib.contextmanager
def _refusals(address: str, job: str = "") -> Iterator[None]:
    """Raise the client's errors as PfrayErrors."""
    from ray.exceptions import AuthenticationError

    try:
        yield
    except AuthenticationError as error:
        raise ClusterError(f"--address: {address} wants another token ({first_line(error)}). {TOKEN_REMEDY}") from error
    except (RuntimeError, ValueError, OSError) as error:
        if job and "status code 404" in str(error):
            raise UnknownJob(
                f"no job {job!r} at {address}. Remedy: an id that --status prints, or the address it was sent to"
            ) from error
        raise ClusterError(f"the job server at {address} refuses: {first_line(error)}. Remedy: see its log") from error
