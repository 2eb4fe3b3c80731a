"""shmserve-admin generate-key and sign, without a daemon: the private key stays where packages are made."""

from __future__ import annotations

from pathlib import Path

import click

from .exit_status import with_exit_status
from .target import Target, print_json

_password_option = click.option(
    "--password-file",
    type=click.Path(path_type=Path, readable=False),
    help="File whose first line is the private key's password; without it the key has none.",
)
_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")


@click.command("generate-key")
@click.argument("file", type=click.Path(path_type=Path, readable=False))
@_password_option
@_json_option
@click.pass_obj
@with_exit_status
def generate_key(target: Target, file: Path, password_file: Path | None, as_json: bool) -> None:
    """Make a key that signs model packages: the private half into FILE, which must not exist yet.

    Prints the public half as the configuration of the robots' daemons takes it.

    \b
    shmserve-admin generate-key ~/keys/models.pem
    """
    from shmserve.package_signature import make_key_pair  # only here: other commands start sooner without it

    public = make_key_pair(file, password=_password(password_file))
    if target.as_json or as_json:
        print_json({"private_key": str(file), "public_key": str(public), "id": public.id})
        return
    print(f"private key {public.id} is in {file}: keep it off the robots, because it signs packages")
    print("for the configuration of each robot's daemon:")
    print("  require_signature = true")
    print(f'  signature_keys = ["{public}"]')


@click.command()
@click.argument("directory", type=click.Path(path_type=Path, readable=False))
@click.option(
    "--key",
    required=True,
    type=click.Path(path_type=Path, readable=False),
    help="The private key (PEM, Ed25519), as of generate-key.",
)
@click.option("--add", is_flag=True, help="Keep the signatures of other keys, while one key follows another.")
@_password_option
@_json_option
@click.pass_obj
@with_exit_status
def sign(target: Target, directory: Path, key: Path, add: bool, password_file: Path | None, as_json: bool) -> None:
    """Sign the model package in DIRECTORY as it is now: writes its model.sig.

    The version stays the same; a change of any other file after this makes the signature worthless.

    \b
    shmserve-admin sign models/new --key ~/keys/models.pem
    """
    from shmserve.package_files import content_version
    from shmserve.package_signature import sign_package

    public = sign_package(directory, key, password=_password(password_file), add=add)
    version = content_version(directory)
    if target.as_json or as_json:
        print_json({"version": version, "id": public.id, "public_key": str(public)})
        return
    print(f"version {version} in {directory} is signed by key {public.id}")


def _password(file: Path | None) -> bytes | None:
    if file is None:
        return None
    from shmserve.text_file import without_byte_order_mark

    try:
        content = without_byte_order_mark(file.read_bytes())
    except ValueError as error:
        raise ValueError(f"password file {file}: {error}") from error
    return content.partition(b"\n")[0].removesuffix(b"\r")
