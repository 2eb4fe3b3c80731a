"""What shmserved uses of click, with argparse: for a bare machine with a GPU and no network, and for nothing else."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

Function = Callable[..., Any]


class BadParameter(ValueError):
    """A value that an option does not take."""


class UsageError(Exception):
    """A mistake in the arguments, which argparse reports itself."""


class Command:
    """The base of the program's command, whose help for mistakes is left out."""


def Path(**settings: Any) -> type[str]:
    return str


def Choice(choices: list[str], **settings: Any) -> type[str]:
    return str


def echo(text: str) -> None:
    print(text)


def version_option(version: str, prog_name: str) -> Callable[[Function], Function]:
    return lambda function: function


def option(*names: str, **settings: Any) -> Callable[[Function], Function]:
    def with_option(function: Function) -> Function:
        function.__dict__.setdefault("options", []).append((names, settings))
        return function

    return with_option


def command(**settings: Any) -> Callable[[Function], Function]:
    def made(function: Function) -> Function:
        parser = argparse.ArgumentParser(description=function.__doc__)
        for names, given in function.__dict__.get("options", []):
            flags = [flag for name in names if name.startswith("-") for flag in name.split("/")]
            target = next((name for name in names if not name.startswith("-")), flags[0].lstrip("-").replace("-", "_"))
            default = given.get("default", False if given.get("is_flag") else None)
            if given.get("is_flag") or len(flags) == 2:
                for flag in flags:
                    parser.add_argument(flag, dest=target, action="store_const", const=not flag.startswith("--no-"))
                parser.set_defaults(**{target: default})
            else:
                parser.add_argument(flags[0], dest=target, default=default, type=given.get("type", str))

        def call() -> Any:
            try:
                return function(**vars(parser.parse_args()))
            except BadParameter as error:
                print(f"Error: {error}", file=sys.stderr)
                return sys.exit(2)

        return call

    return made
