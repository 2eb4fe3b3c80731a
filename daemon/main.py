"""shmserved: the command line, and the composition of the daemon's parts."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

try:
    import click
except ModuleNotFoundError:  # only the client is installed
    sys.exit("shmserved needs the daemon's packages: pip install 'shmserve[daemon]'")

from shmserve import __version__
from shmserve.directories import (
    ADMIN_SOCKET,
    CLIENT_SOCKET,
    check_service_name,
    daemon_runtime_directory,
    daemon_state_directory,
)
from shmserve.errors import ModelPackageError
from shmserve.package_files import package_bytes
from shmserve.shortened import shortened
from shmserve.standard_streams import open_standard_streams
from shmserve.toml_value import toml_value

from .api import AdminService, ClientService
from .config.config import LOG_LEVELS, Config, ConfigError
from .config.sources import Settings
from .failpoints import failpoint
from .host import descriptors
from .host.logging import configure_logging
from .host.notify import Notifier
from .host.service_lock import AlreadyRunning
from .host.socket_activation import ActivationError, group_may_connect, listen_fds
from .host.stop_signals import StopSignals
from .packages.package import ModelPackage
from .rollout import Rollout, choose_startup_version, open_store
from .supervisor import ActivityMonitor, EngineStartError, EngineWatchdog, ReadinessNotifier, Supervisor
from .varlink.connection import ConnectionLimits
from .varlink.interface import ServiceInfo
from .varlink.server import VarlinkServer, listen_unix

log = logging.getLogger(__name__)

#: Exit statuses: 1 the service failed, 2 usage (click's own), 78 (EX_CONFIG): a restart by systemd is pointless.
FAILED = 1
MISCONFIGURED = 78

#: Time for the answers to callers that wait for the service, before the sockets are closed after a failure.
_ANSWERED_S = 0.3

_INFO = ServiceInfo("shmserve", "shmserved", __version__, "")


async def serve(config: Config, settings: Settings, inherited: dict[str, socket.socket], notifier: Notifier) -> None:
    """Run the daemon until it is stopped; raises as `Supervisor.open`, `choose_startup_version` and `run`.

    `inherited` are the listening sockets from systemd, by file name; this function creates the others.
    """
    # The supervisor's callbacks go to the two services created below, before any engine is started.
    supervisor = Supervisor(
        config,
        on_evict=lambda lease, reason: client_service.evict(lease, reason),
        on_detach=lambda lease: client_service.detach(lease),
        on_crash=lambda engine: rollout.crashed(engine),
        on_ended=lambda engine: rollout.version_log.record_requests(engine),
        is_on_probation=lambda engine: rollout.is_on_probation(engine),
    )
    store = open_store(config, in_use=supervisor.engines.versions)
    client_service = ClientService(supervisor)
    rollout = Rollout(supervisor, store)
    watchdog = EngineWatchdog(supervisor)
    readiness = ReadinessNotifier(supervisor, notifier, watchdog)
    activity = ActivityMonitor(supervisor.snapshot)
    signals = StopSignals(supervisor.stop)
    descriptors.raise_limit()
    background = [asyncio.create_task(task) for task in (watchdog.run(), readiness.run(), activity.run())]
    for task in background:
        task.add_done_callback(_log_failure)
    try:
        supervisor.open()
        signals.handle()
        await asyncio.to_thread(store.open)  # in a thread: a long sweep must not delay the watchdog's keep-alive
        access_policy = supervisor.access_policy

        def listener(file: str, mode: int) -> socket.socket:
            return inherited.get(file) or listen_unix(supervisor.directory / file, mode)

        clients = VarlinkServer(
            listener(CLIENT_SOCKET, access_policy.client_socket_mode),
            _INFO,
            [client_service.interface()],
            refusal=access_policy.client_refusal,
            # One user's processes can take about half of them.
            limits=ConnectionLimits(
                connections=2 * config.max_clients + 32, connections_per_uid=config.max_clients + 16
            ),
        )
        admin = VarlinkServer(
            listener(ADMIN_SOCKET, access_policy.admin_socket_mode),
            _INFO,
            [AdminService(supervisor, rollout, store, settings, activity).interface()],
            refusal=access_policy.admin_refusal,
            is_reserved=access_policy.may_operate,
            limits=ConnectionLimits(connections=32, connections_per_uid=16, accept_fds=1),
        )
        servers = [asyncio.create_task(server.serve()) for server in (clients, admin)]
        try:
            taking = asyncio.create_task(choose_startup_version(config, store, supervisor.ingest))
            first = await supervisor.unless_stopped(taking)
            if first is not None:
                await supervisor.run(first.deployment, on_first=lambda: rollout.version_log.enqueue(first.remember))
        except Exception as error:
            supervisor.fail(str(error))
            await asyncio.sleep(_ANSWERED_S)
            raise
        finally:
            readiness.stopping()
            clients.close()
            admin.close()
            await asyncio.gather(*servers, return_exceptions=True)
            await rollout.close()
            for file in {CLIENT_SOCKET, ADMIN_SOCKET} - inherited.keys():
                (supervisor.directory / file).unlink(missing_ok=True)
    except Exception as error:
        readiness.failed(str(error))
        raise
    finally:
        signals.ignore()  # nothing is left that a further one could stop
        for task in background:
            task.cancel()
        store.close()
        supervisor.close()


def _log_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("a background task of the daemon has failed", exc_info=error)


def _spin(value: str | None) -> int | str | None:
    if value is None or value == "adaptive":
        return value
    try:
        return int(value)
    except ValueError:
        raise click.BadParameter(f"{value!r} is neither a number of microseconds nor 'adaptive'") from None


class _Shmserved(click.Command):
    """The command, with the remedy for the argument that other servers take and this one does not."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            if "unexpected extra argument" not in error.message:
                raise
            remedy = "shmserved takes options only. Give the package as --model-path DIR"
            raise click.UsageError(f"{error.message}: {remedy}", ctx) from error


@click.command(cls=_Shmserved, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--model-path",
    type=click.Path(readable=False),
    help="The model package to serve: a directory with policy.py, model.pt2 or model.pt, or a LeRobot checkpoint. Without it, the last one served.",
)
@click.option("--name", default="default", show_default=True, help="Name of the service; clients ask for it.")
@click.option("--device", help="Where the model runs: cpu, cuda, cuda:0 ...  [default: cpu]")
@click.option(
    "--runtime-dir",
    type=click.Path(readable=False),
    help="Parent directory of the sockets, with a subdirectory for each service.",
)
@click.option("--state-dir", type=click.Path(readable=False), help="Directory of the model versions.")
@click.option("--transport", type=click.Choice(["named", "sealed"]), help="How memory is shared.  [default: named]")
@click.option("--spin-us", help="Microseconds to spin before sleeping, or 'adaptive'.  [default: adaptive]")
@click.option("--threads", type=int, help="Threads of one torch operation.  [default: half of the processors]")
@click.option(
    "--lock-memory/--no-lock-memory",
    default=None,
    help="Keep the engine's memory from being swapped out.  [default: no]",
)
@click.option(
    "--engine-priority", type=int, help="Real-time priority of the engine (SCHED_FIFO), 0: normal.  [default: 0]"
)
@click.option(
    "--device-leaves/--no-device-leaves",
    default=None,
    help="Take observations that lie in the GPU's memory; experimental.  [default: no]",
)
@click.option(
    "--log-level",
    type=click.Choice(LOG_LEVELS, case_sensitive=False),
    help="Least severity of the log's lines.  [default: info]",
)
@click.option(
    "--config", "config_path", type=click.Path(readable=False), help="Configuration file (TOML); flags win over it."
)
@click.option(
    "--check-config", is_flag=True, help="Print the effective settings and exit with 0, or with 78 for an error."
)
@click.version_option(__version__, prog_name="shmserved")
def main(
    config_path: str | None,
    name: str,
    runtime_dir: str | None,
    state_dir: str | None,
    check_config: bool,
    **flags: Any,
) -> None:
    """Serve a PyTorch policy to the robot processes of this host through shared memory.

    Settings: flags, else SHMSERVE_<KEY> in the environment, else /etc/shmserve/<name>.toml (or the user's own
    ~/.config/shmserve/<name>.toml), else the defaults. SIGTERM answers what clients have sent and exits 0.

    \b
    shmserved --model-path models/arm --name arm --device cuda:0
    shmserved --config arm.toml --check-config
    """
    open_standard_streams()  # first: another file would take the number of a closed one
    descriptors.keep_from_children()
    # Some starters ignore it; the kernel would then reap the engines.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    configure_logging("shmserved")
    notifier = Notifier.from_environment(os.environ)
    try:
        check_service_name(name)
        flags["spin_us"] = _spin(flags["spin_us"])
        directories = {
            "runtime_dir": daemon_runtime_directory(runtime_dir),
            "state_dir": daemon_state_directory(state_dir),
        }
        settings = Settings(
            name, directories, flags=flags, environment=os.environ, file=Path(config_path) if config_path else None
        )
        config = settings.read()
        if check_config:
            _print_settings(settings)
            return
        os.environ["SHMSERVE_LOG_LEVEL"] = config.log_level  # for the engines
        configure_logging("shmserved")
        for unknown in settings.unknown_variables():
            log.warning("%s", unknown)
        inherited = listen_fds(os.environ, config.runtime_dir / name)
        if config.group_clients is None:
            sock = inherited.get(CLIENT_SOCKET)
            config = replace(config, group_clients=sock is not None and group_may_connect(sock))
        if config.model_path is not None:
            # Before anything is created: the most common mistake.
            ModelPackage.read(config.model_path, allow_code=config.allow_code)
            package_bytes(config.model_path)
    except (ConfigError, ActivationError, ModelPackageError, ValueError) as error:
        log.error("%s", error)
        notifier.sd_notify(STATUS=shortened(f"failed: {error}", 500))
        sys.exit(MISCONFIGURED)
    try:
        asyncio.run(serve(config, settings, inherited, notifier))
    except ConfigError as error:  # a restart would have nothing to serve either
        log.error("%s", error)
        sys.exit(MISCONFIGURED)
    except (AlreadyRunning, EngineStartError, ModelPackageError, OSError) as error:
        log.error("%s", error)
        sys.exit(FAILED)
    finally:
        for sock in inherited.values():
            with contextlib.suppress(OSError):
                sock.close()
    failpoint("daemon.ended")
    log.info("stopped")


def _print_settings(settings: Settings) -> None:
    """Print the settings as a configuration file, and those that are not set as comments in it."""
    for key, effective in settings.effective.items():
        click.echo(
            f"# {key} is not set"
            if effective.value is None
            else f"{key} = {toml_value(effective.value)}  # {effective.origin}"
        )


if __name__ == "__main__":
    main()
