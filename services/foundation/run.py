"""The life of a process: settings, start, serve, and an ordered stop within a deadline."""

import argparse
import asyncio
import contextlib
import gc
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import structlog
import uvloop

from services.foundation import telemetry
from services.foundation.config import ServiceSettings, load
from services.foundation.errors import RefusedError
from services.foundation.rpc import RpcServer

LOG = structlog.get_logger()
#: New objects after which cycles of garbage are looked for.
GC_OBJECTS = 50_000
SettingsT = TypeVar("SettingsT", bound=ServiceSettings)


class Process:
    """What `main` wires: a server, background tasks, and closers that run in reverse order at the end."""

    def __init__(self, name: str, settings: ServiceSettings) -> None:
        self.name = name
        self.server = RpcServer(settings.listen, calls_per_client=settings.calls_per_client)
        self._settings = settings
        self._stopping = asyncio.Event()
        self._failure: BaseException | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._closers = contextlib.AsyncExitStack()

    def on_close(self, close: Callable[[], Awaitable[Any]]) -> None:
        self._closers.push_async_callback(close)

    def background(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        """Run `work` until the process stops; if it ends by itself or fails, so does the process."""

        async def guarded() -> None:
            try:
                await work
            except asyncio.CancelledError:
                raise
            except BaseException as error:
                LOG.exception("background task failed, stopping", task=name)
                self._failure = error
            else:
                self._failure = RuntimeError(f"{name} ended")
            self._stopping.set()

        self._tasks.append(asyncio.create_task(guarded(), name=name))

    def watch(self, part: str, ping: Callable[[], Awaitable[bool]]) -> None:
        """Ask every second whether `part` answers, and tell it in the health of this process."""
        available = self.server.availability(part)

        async def watch() -> None:
            while True:
                available(await ping())
                await asyncio.sleep(1)

        self.background(f"watch {part}", watch())

    async def _serve(self) -> None:
        await self.server.start()
        # What was made for good needs no search for cycles, and what is made by a call seldom has any: the default, a
        # search for every 700 new objects, takes a tenth of a busy process's time.
        gc.collect()
        gc.freeze()
        gc.set_threshold(GC_OBJECTS)
        await self._stopping.wait()
        LOG.info("stopping")

    async def _drain(self) -> None:
        # First no new work, then none running, then the connections that work needed.
        await self.server.stop(self._settings.drain_seconds)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._closers.aclose()

    async def run(self, wire: Callable[[], Awaitable[None]]) -> int:
        """Wire, serve until a signal or a failure, drain; return the exit status."""
        loop = asyncio.get_running_loop()
        wiring = asyncio.ensure_future(self._wire_and_serve(wire))
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        stopping = asyncio.create_task(self._stopping.wait())
        await asyncio.wait({wiring, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not wiring.done():
            # Told to stop; while still waiting for a part at start, there is nothing to serve to its end.
            wiring.cancel() if self.server.port == 0 else None
        try:
            await wiring
        except asyncio.CancelledError:
            pass
        except (OSError, RefusedError) as error:
            LOG.error("cannot start", error=str(error))  # noqa: TRY400 - the text says it all
            self._failure = error
        except Exception as error:
            LOG.exception("cannot start")
            self._failure = error
        stopping.cancel()
        try:
            async with asyncio.timeout(self._settings.drain_seconds + 2.0):
                await self._drain()
        except TimeoutError:
            LOG.warning("not drained in time")
        telemetry.shut_down()
        return 1 if self._failure else 0

    async def _wire_and_serve(self, wire: Callable[[], Awaitable[None]]) -> None:
        await wire()
        await self._serve()


def run(name: str, settings_type: type[SettingsT], wire: Callable[[SettingsT, Process], Awaitable[None]]) -> None:
    """Be the service `name`: the body of every `main.py`. `--check-config` only checks the settings."""
    parser = argparse.ArgumentParser(prog=f"recorrido {name}")
    parser.add_argument("--check-config", action="store_true", help="check the settings and exit")
    arguments = parser.parse_args()
    settings = load(settings_type)
    if arguments.check_config:
        print(f"{name}: settings are fine")  # noqa: T201 - the answer to the question
        return
    os.environ.setdefault("OTEL_SERVICE_NAME", name)
    telemetry.set_up(name, log_level=settings.log_level, log_format=settings.log_format)

    async def start() -> int:
        process = Process(name, settings)
        return await process.run(lambda: wire(settings, process))

    sys.exit(uvloop.run(start()))
