"""A stand-in for the cluster's job server: it answers Ray's own client as Ray's server does, and runs nothing."""

from __future__ import annotations

import asyncio
import io
import threading
import zipfile
from typing import Any

import ray
from aiohttp import web


class JobServer:
    """exits: the exit code that a job ends with, by a word in its command. refuse: a status for every request. young:
    how often it can start no job yet.

    jobs: what was sent, by id. packages: the names of the files in what was uploaded, by package.
    """

    def __init__(self) -> None:
        self.exits: dict[str, int] = {}
        self.refuse = self.young = 0
        self.jobs: dict[str, dict[str, Any]] = {}
        self.packages: dict[str, list[str]] = {}
        self.stopped: set[str] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.address = asyncio.run_coroutine_threadsafe(self._start(), self._loop).result()

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _start(self) -> str:
        app = web.Application(client_max_size=2**28, middlewares=[self._guard])
        app.add_routes([
            web.get("/api/version", self._version),
            web.get("/api/packages/{protocol}/{name}", self._package),
            web.put("/api/packages/{protocol}/{name}", self._upload),
            web.post("/api/jobs/", self._submit),
            web.get("/api/jobs/{job}", self._info),
            web.post("/api/jobs/{job}/stop", self._stop),
            web.get("/api/jobs/{job}/logs/tail", self._tail),
        ])  # fmt: skip
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        return f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    @web.middleware
    async def _guard(self, request: web.Request, handler: Any) -> web.StreamResponse:
        if self.refuse:
            return web.Response(status=self.refuse, text="refused")
        if (job := request.match_info.get("job")) is not None and job not in self.jobs:
            return web.Response(status=404, text=f"Job {job} does not exist")
        return await handler(request)

    async def _version(self, request: web.Request) -> web.Response:
        return web.json_response({"version": "4", "ray_version": ray.__version__, "ray_commit": "", "session_name": ""})

    async def _package(self, request: web.Request) -> web.Response:
        return web.Response(status=200 if request.match_info["name"] in self.packages else 404)

    async def _upload(self, request: web.Request) -> web.Response:
        with zipfile.ZipFile(io.BytesIO(await request.read())) as package:
            self.packages[request.match_info["name"]] = package.namelist()
        return web.Response()

    async def _submit(self, request: web.Request) -> web.Response:
        if self.young:
            self.young -= 1
            return web.Response(status=500, text="No available agent to submit job, please try again later.")
        sent = await request.json()
        self.jobs[sent["submission_id"]] = sent
        return web.json_response({"job_id": sent["submission_id"], "submission_id": sent["submission_id"]})

    async def _info(self, request: web.Request) -> web.Response:
        job = request.match_info["job"]
        entrypoint = self.jobs[job]["entrypoint"]
        code = next((code for word, code in self.exits.items() if word in entrypoint), 0)
        status = "STOPPED" if job in self.stopped else "FAILED" if code else "SUCCEEDED"
        message = "Job was intentionally stopped." if job in self.stopped else ""
        return web.json_response({
            "type": "SUBMISSION", "submission_id": job, "status": status, "entrypoint": entrypoint, "message": message,
            "driver_exit_code": None if job in self.stopped else code,
        })  # fmt: skip

    async def _stop(self, request: web.Request) -> web.Response:
        job = request.match_info["job"]
        first = job not in self.stopped
        self.stopped.add(job)
        return web.json_response({"stopped": first})

    async def _tail(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        # Not cut where lines end.
        for chunk in ("[load] star", "ted\n[load] done", " in 1.5 s\nlast"):
            await socket.send_str(chunk)
        await socket.close()
        return socket
