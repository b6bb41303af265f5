"""Make the guide's pictures of a run again: Ray's dashboard, and TensorBoard.

``python docs/screenshots.py``; needs Chromium. Three minutes: it runs the demo with
more trials in a folder of its own, and looks at it while it searches.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import aiohttp

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.raylets import free_ports

HERE = Path(__file__).resolve().parent
RUN = [sys.executable, "-u", "-m", "pfray.run", "experiments/mobilenet_sparse.yaml", "resources.dashboard=true"]
CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "chrome")
# Trials of the run, and how many of them are done when the dashboard is looked at.
TRIALS, ENOUGH = 120, 8
# Seconds that a page has to load and to draw.
SETTLE = 20


async def shoot(browser: str, url: str, picture: Path, width: int, height: int) -> None:
    """What ``browser`` shows of ``url`` after SETTLE seconds, as a PNG file of that many pixels.

    By Chrome's DevTools protocol: its own --screenshot does not wait for what a page draws later.
    """
    with tempfile.TemporaryDirectory() as profile:
        command = [
            browser, "--headless=new", "--no-sandbox", "--enable-unsafe-swiftshader", "--hide-scrollbars",
            f"--user-data-dir={profile}", f"--window-size={width},{height}", "--remote-debugging-port=0", url,
        ]  # fmt: skip
        with started(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as running:
            port_file = Path(profile, "DevToolsActivePort")
            wait_for(lambda: port_file.exists() and "\n" in port_file.read_text(), running)
            home = f"http://127.0.0.1:{port_file.read_text().splitlines()[0]}"
            await asyncio.sleep(SETTLE)
            async with aiohttp.ClientSession() as session:
                pages = await (await session.get(f"{home}/json/list")).json()
                address = next(page["webSocketDebuggerUrl"] for page in pages if page["type"] == "page")
                async with session.ws_connect(address, max_msg_size=0) as socket:
                    await socket.send_json({"id": 1, "method": "Page.captureScreenshot"})
                    answer = await socket.receive_json()
    picture.write_bytes(base64.b64decode(answer["result"]["data"]))
    print(picture)


def wait_for(what: Callable[[], bool], running: subprocess.Popen[str], seconds: float = 300) -> None:
    """Raises RuntimeError where the process ends, or the time does, before it is so."""
    deadline = time.monotonic() + seconds
    while not what():
        if running.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"{' '.join(map(str, running.args))} did not come that far")  # type: ignore[arg-type]
        time.sleep(0.5)


@contextlib.contextmanager
def started(command: Sequence[str], **options: object) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(command, cwd=HERE.parent, text=True, **options)  # type: ignore[call-overload]
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


def watch_a_run(browser: str, storage: Path) -> Path:
    """The dashboard's picture; the folder of the run, which then goes on to its end."""
    folder = storage / "mobilenet_sparse"
    trials = folder / "search" / "trials.jsonl"
    command = [*RUN, f"storage={storage}", f"search.trials={TRIALS}"]
    # The pages of a Ray that nobody else can reach are shown without asking for its token.
    with started(command, stdout=subprocess.PIPE, env={**os.environ, "RAY_AUTH_MODE": "disabled"}) as run:
        assert run.stdout is not None
        address = next(line.split()[-1] for line in run.stdout if re.match(r"\s*dashboard: ", line))
        wait_for(lambda: trials.exists() and len(trials.read_text().splitlines()) >= ENOUGH, run)
        asyncio.run(shoot(browser, f"{address}/#/actors", HERE / "dashboard.png", 1400, 760))
        for _ in run.stdout:
            pass
        if run.wait() != 0:
            raise RuntimeError(f"the run failed with exit code {run.returncode}")
    return folder


def watch_tensorboard(browser: str, folder: Path) -> None:
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}/"

    def answers() -> bool:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"{url}data/runs", timeout=5).close()
            return True
        return False

    program = Path(sys.executable).with_name("tensorboard")
    command = [str(program), "--logdir", str(folder / "events"), "--port", str(port)]
    with started(command, stderr=subprocess.DEVNULL) as board:
        wait_for(answers, board)
        shown = f"{url}?darkMode=false&tagFilter=search%7Ctrain#timeseries"
        asyncio.run(shoot(browser, shown, HERE / "tensorboard.png", 1400, 900))


def main() -> int:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    browser = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if browser is None:
        print(f"no Chromium: none of {', '.join(CHROMIUM)} is there", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as storage:
        watch_tensorboard(browser, watch_a_run(browser, Path(storage)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
