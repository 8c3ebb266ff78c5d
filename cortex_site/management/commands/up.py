"""`manage.py up`: the gateway, metrics, worker, beat, Valkey and one neuron, in one terminal."""

import asyncio
import contextlib
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
from django.conf import settings
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError
from django.db import connections
from django.utils import timezone

from cortex_site import embedded
from cortex_site.supervisor import Program, Supervisor, write_line

T = TypeVar("T")

READY_SECONDS = 120.0
BROKER_SECONDS = 5.0


class Command(BaseCommand):
    help = "Run everything on this machine; Ctrl-C stops it."

    def handle(self, *args: Any, **options: Any) -> None:
        lock = embedded.lock_data_folder()
        try:
            embedded.check_ports()
            embedded.clear_metrics()
            valkey = embedded.valkey_program()
            call_command("migrate", verbosity=0, interactive=False)
            folder = embedded.ensure_demo_model(write_line)
            asyncio.run(_run(valkey, folder))
        except KeyboardInterrupt:
            raise CommandError("Interrupted.") from None
        finally:
            lock.close()


async def _run(valkey: Program | None, demo_folder: Path) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as it is under nohup
        loop.add_signal_handler(signal.SIGHUP, stop.set)
    supervisor = Supervisor(write_line, coloured=sys.stdout.isatty())
    if valkey is not None:
        supervisor.start(valkey)
        await _broker_listens()
    await asyncio.to_thread(_with_database, _enter_rows, demo_folder)
    for program in embedded.programs():
        supervisor.start(program)
    greeting = asyncio.create_task(_greet())
    await stop.wait()
    write_line("Stopping ...")
    greeting.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await greeting
    await supervisor.stop()
    write_line("Stopped.")


async def _broker_listens() -> None:
    deadline = time.monotonic() + BROKER_SECONDS
    while time.monotonic() < deadline:
        if settings.EMBEDDED_VALKEY_SOCKET.exists():
            return
        await asyncio.sleep(0.02)


def _enter_rows(demo_folder: Path) -> None:
    embedded.ensure_rows(demo_folder, timezone.now())


def _with_database(work: Callable[..., T], *arguments: object) -> T:
    """Run in a thread of its own what uses the database there."""
    try:
        return work(*arguments)
    finally:
        connections.close_all()


async def _greet() -> None:
    began = time.monotonic()
    gateway = f"http://localhost:{settings.CORTEX_PORT}"
    urls = (f"{gateway}/v1/models", f"http://127.0.0.1:{settings.NEURON_PORT}/health")
    ready = await asyncio.gather(*(_answers(url, began + READY_SECONDS) for url in urls))
    if not all(ready):
        write_line(f"Not everything answered within {READY_SECONDS:.0f} s: see the lines above.")
    seconds = time.monotonic() - began
    # Made only now, so that the password is made when somebody is there to be told.
    password = await asyncio.to_thread(_with_database, embedded.ensure_admin)
    write_line(_welcome(gateway, password, seconds))


async def _answers(url: str, deadline: float) -> bool:
    timeout = aiohttp.ClientTimeout(total=2)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        while time.monotonic() < deadline:
            try:
                async with session.get(url) as response:
                    if response.status == 200:
                        return True
            except (aiohttp.ClientError, TimeoutError):
                pass
            await asyncio.sleep(0.1)
    return False


def _welcome(gateway: str, password: str | None, seconds: float) -> str:
    login = f"user {embedded.ADMIN_NAME}, password {password}" if password else "as before"
    question = (
        f'{{"model": "{embedded.DEMO_MODEL_ID}", "stream": true, '
        '"messages": [{"role": "user", "content": "Hello!"}]}'
    )
    return f"""
Cortex is ready, {seconds:.1f} s after its start.

  API      {gateway}/v1
  Admin    {gateway}/admin/   ({login})
  Metrics  http://localhost:{settings.CORTEX_METRICS_PORT}/metrics

Try it:

  curl -sN {gateway}/v1/chat/completions -d '{question}'
"""
