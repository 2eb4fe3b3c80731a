"""shmserve-admin: arguments of the commands, one call on the admin socket each, and their output."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

try:
    import click
except ModuleNotFoundError:  # the client alone is installed
    sys.exit("shmserve-admin needs the daemon's packages: pip install 'shmserve[daemon]'")

from shmserve import __version__
from shmserve.directories import check_service_name
from shmserve.standard_streams import open_standard_streams
from shmserve.varlink import VarlinkError

from .bench import bench
from .click_types import Number
from .completion import complete_services, completion
from .doctor.command import doctor
from .exit_status import NOT_READY_YET, REFUSED, fail, with_exit_status
from .export import export
from .infer import infer
from .list_services import list_services
from .monitor import clients, metrics, top
from .record import record
from .remote import remote
from .replay import replay
from .settings import config, reload
from .signing import generate_key, sign
from .target import Target, print_json, show


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--name",
    default="default",
    show_default=True,
    help="Name of the service.",
    shell_complete=complete_services,
)
@click.option(
    "--runtime-dir", type=click.Path(readable=False), help="Where the daemon's sockets are, if not at the usual place."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
@click.version_option(__version__, prog_name="shmserve-admin")
@click.pass_context
def main(context: click.Context, name: str, runtime_dir: str | None, as_json: bool) -> None:
    """Look after a running shmserve service.

    --name, --runtime-dir and --json may also stand after the command. Members of the service's group may look (status, top, clients, metrics,
    versions, config, wait-ready); to change something run it as the daemon's user or as root.

    Exit status: 0 done, 1 refused or failed, 2 usage, 3 no daemon, 4 not ready yet, 5 cut off; 130 after Ctrl-C, 141 if stdout was closed early.

    \b
    shmserve-admin status
    shmserve-admin status --name arm --json
    shmserve-admin update-model models/new
    """
    open_standard_streams()
    context.obj = Target(_checked_name(name), runtime_dir, as_json)


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")

for command in (
    bench,
    clients,
    completion,
    config,
    doctor,
    export,
    generate_key,
    infer,
    list_services,
    metrics,
    record,
    reload,
    remote,
    replay,
    sign,
    top,
):
    main.add_command(command)


@main.command()
@json_option
@click.option("--watch", is_flag=True, help="Show it again every second, until Ctrl-C.")
@click.pass_obj
@with_exit_status
def status(target: Target, as_json: bool, watch: bool) -> None:
    """Show the health of the service, its model, its clients and its latencies.

    \b
    shmserve-admin status
    shmserve-admin --name arm status --watch
    shmserve-admin status --json
    """
    if watch:
        from .watch_screen import watch_status

        watch_status(target, as_json=target.as_json or as_json)
        return
    with target.connection() as connection:
        found = connection.status()
    if target.as_json or as_json:
        print_json(found)
        return
    from .status_view import render  # only here: JSON output does not wait for rich

    show(render(found))


@main.command("wait-ready")
@click.option(
    "--timeout",
    type=Number(0, 86_400),
    help="Seconds to wait at most.  [default: while the daemon makes progress, and 60 s without]",
)
@click.pass_obj
@with_exit_status
def wait_ready(target: Target, timeout: float | None) -> None:
    """Return once the service answers requests.

    Waits for the daemon as well: it may start later. A large package or model takes its time: without --timeout the
    command waits as long as bytes arrive or the model loads, and ends after 60 s without a daemon or without progress.

    Exit status 1: the service has failed, with the reason. 4: it was still starting when the wait ended. 3: no daemon.

    \b
    shmserve-admin wait-ready
    shmserve-admin wait-ready --timeout 120
    """
    from .target import progress_line
    from .wait_ready import answers, state_words, wait_until_ready

    began_s = time.monotonic()
    with progress_line(str) as tell:
        waiting = f"waiting for service {target.name!r}"
        tell(waiting)
        found = wait_until_ready(target.connection, timeout, lambda state: tell(f"{waiting}: {state_words(state)}"))
    if target.as_json:
        print_json(found)
    if not answers(found):
        reason = f": {found['error']}" if found["error"] else ""
        passed_s = time.monotonic() - began_s
        status = REFUSED if found["settled"] else NOT_READY_YET
        fail(f"service {target.name!r} is {state_words(found)} after {passed_s:.1f} s{reason}", status)


@main.command("update-model")
@click.argument("path", type=click.Path(readable=False))
@click.option("--device", help="Move to another device, for example cuda:1.")
@click.option("--in-place", is_flag=True, help="Stop the old model first, for one that does not fit twice.")
@click.option("--allow-contract-change", is_flag=True, help="Accept other names, dtypes, shapes or units than now.")
@click.option("--allow-downgrade", is_flag=True, help="Accept an older release than what was served (signed packages).")
@click.option("--note", default="", help="A remark that `versions` shows.")
@json_option
@click.pass_obj
@with_exit_status
def update_model(
    target: Target,
    path: str,
    device: str | None,
    in_place: bool,
    allow_contract_change: bool,
    allow_downgrade: bool,
    note: str,
    as_json: bool,
) -> None:
    """Serve the model package at PATH, a directory or a tar, while robots run.

    The old model answers until the new one is loaded, checked and warm. If anything fails it serves on.

    \b
    shmserve-admin update-model models/new --note "more light"
    shmserve-admin --name arm update-model new.tar.gz --in-place --device cuda:1
    """
    from .update import name_of, open_package

    descriptor = open_package(Path(path))
    try:
        with target.connection() as connection:
            parameters = {
                "name": name_of(Path(path)),
                "device": device,
                "in_place": in_place,
                "allow_contract_change": allow_contract_change,
                "allow_downgrade": allow_downgrade,
                "note": note,
            }
            _change(connection.call_more("UpdateModel", parameters, fd=descriptor), target.as_json or as_json)
    finally:
        os.close(descriptor)


@main.command()
@click.argument("version", required=False)
@json_option
@click.pass_obj
@with_exit_status
def rollback(target: Target, version: str | None, as_json: bool) -> None:
    """Serve the version before again, or VERSION (a beginning of it is enough).

    \b
    shmserve-admin rollback
    shmserve-admin rollback 46ab1d
    """
    with target.connection() as connection:
        _change(connection.call_more("Rollback", {"version": version}), target.as_json or as_json)


def _change(replies: Iterator[dict[str, Any]], as_json: bool) -> None:
    """Print the steps of an update or rollback, and its result."""
    from .update import follow

    try:
        result = follow(replies, quiet=as_json)
    except VarlinkError as refusal:
        if as_json:
            print_json({"changed": False, **refusal.parameters})
        raise
    if as_json:
        print_json(result)
    elif result["changed"]:
        print(f"serving version {result['version']}; no request was taken for {result['pause_ms']:.2f} ms")
    else:
        print(f"version {result['version']} is already served")


@main.command()
@json_option
@click.pass_obj
@with_exit_status
def versions(target: Target, as_json: bool) -> None:
    """The model versions that are kept, latest first.

    \b
    shmserve-admin versions
    shmserve-admin versions --json
    """
    with target.connection() as connection:
        found = connection.call("Versions")["versions"]
    if target.as_json or as_json:
        print_json(found)
        return
    from .versions_view import render

    show(render(found))


@main.command()
@click.pass_obj
@with_exit_status
def drain(target: Target) -> None:
    """Answer what clients have sent, then stop the daemon.

    \b
    shmserve-admin drain
    """
    with target.connection() as connection:
        connection.call("Drain")
    if target.as_json:
        print_json({"draining": True})


@main.command("install-service")
@click.option("--user", is_flag=True, help="As a service of this user, without root.")
@click.option(
    "--model-path",
    type=click.Path(path_type=Path, readable=False),
    help="The model package to begin with: a directory.",
)
@click.option("--device", help="Where the model runs: cpu, cuda:0 ...")
@click.option("--jetson", is_flag=True, help="Allow the device nodes of NVIDIA Jetson.")
@click.option(
    "--real-time",
    is_flag=True,
    help="Lock its memory and run it before other programs: see realtime.conf for the risk.",
)
@click.option(
    "--metrics",
    is_flag=True,
    help="Write its metrics twice a minute, for node_exporter: see docs/how-to/monitoring.md.",
)
@click.option("--no-start", is_flag=True, help="Enable it for the next boot without starting it now.")
@click.option(
    "--root",
    type=click.Path(path_type=Path, readable=False),
    default=Path("/"),
    help="Write below this directory (an image).",
)
@click.option("--dry-run", is_flag=True, help="Print the files and commands instead.")
@click.pass_obj
@with_exit_status
def install_service(
    target: Target,
    user: bool,
    model_path: Path | None,
    device: str | None,
    jetson: bool,
    real_time: bool,
    metrics: bool,
    no_start: bool,
    root: Path,
    dry_run: bool,
) -> None:
    """Make it a systemd service that starts at boot, under the name of --name.

    \b
    sudo shmserve-admin --name arm install-service --model-path /srv/models/arm --device cuda:0
    shmserve-admin --name arm install-service --user --dry-run
    """
    from .service_installation import Installation

    installation = Installation(
        target.name, user, model_path, device, jetson, real_time, not no_start, metrics, root.absolute()
    )
    if dry_run and target.as_json:
        files = {str(path): content for path, content in installation.files().items()}
        print_json({"files": files, "commands": installation.commands()})
        return
    if dry_run:
        for path, content in installation.files().items():
            print(f"==> {path} <==\n{content}")
        print("==> commands <==")
        for command in installation.commands():
            print(" ".join(command))
        return
    try:
        steps = installation.install()
    except PermissionError as error:
        fail(f"{error.filename} may not be written by uid {os.getuid()}: run it with sudo, or with --user")
    if target.as_json:
        print_json({"steps": steps})
        return
    print("\n".join(steps))
    if user:
        print("So that it runs without a login, and logind leaves its shared memory: loginctl enable-linger")
    else:
        print("Robots of other users may attach as members of the group: usermod -aG shmserve USER")


def _checked_name(name: str) -> str:
    try:
        return check_service_name(name)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--name") from error


def _put(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    """An option after the command goes where the same one before it went."""
    target = context.find_object(Target)
    if value not in (None, False) and target is not None:  # None: the shell asks what could follow
        setattr(target, str(parameter.name), _checked_name(value) if parameter.name == "name" else value)


def _after_the_command() -> list[click.Option]:
    """The options of shmserve-admin itself, as every command takes them, too; its own help names them once."""
    return [
        click.Option(["--name"], callback=_put, expose_value=False, hidden=True, shell_complete=complete_services),
        click.Option(
            ["--runtime-dir"],
            type=click.Path(readable=False),
            callback=_put,
            expose_value=False,
            hidden=True,
        ),
        click.Option(["--json", "as_json"], is_flag=True, callback=_put, expose_value=False, hidden=True),
    ]


for command in main.commands.values():
    known = {name for parameter in command.params for name in parameter.opts}
    command.params += [option for option in _after_the_command() if known.isdisjoint(option.opts)]
    # In the list of commands and in apropos(1) its first sentence, where click would cut it short.
    command.short_help = (command.help or "").partition("\n\n")[0]


if __name__ == "__main__":
    main()
