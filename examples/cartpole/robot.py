"""The robot: balances a CartPole by sending its camera's frames to a shmserve daemon fifty times a second.

It knows nothing of the model: no torch, no weights, no state but what the camera sees.
Exit status: 0 balanced, 1 not, 2 usage, 130 interrupted.
"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

REQUIRED_MEAN = 400.0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", default="default", help="name of the service to ask (default: default)")
    parser.add_argument("--runtime-dir", help="where its sockets are (default: where ShmClient looks)")
    parser.add_argument("--episodes", type=int, default=5, help="episodes to balance (default 5)")
    parser.add_argument("--seed", type=int, default=0, help="of the first episode, the next ones count up (default 0)")
    parser.add_argument("--rate", type=float, default=50.0, help="pushes a second (default 50)")
    parser.add_argument("--output", type=Path, default=Path("demo.png"), help="latency plot (default demo.png)")
    arguments = parser.parse_args()
    if arguments.episodes < 1:
        parser.error(f"--episodes {arguments.episodes} must be 1 or more")
    if arguments.seed < 0:
        parser.error(f"--seed {arguments.seed} must be 0 or more")
    if not 0.1 <= arguments.rate <= 1000:
        parser.error(f"--rate {arguments.rate:g} must be from 0.1 to 1000 pushes a second")
    if not arguments.output.parent.is_dir():
        parser.error(f"--output {arguments.output}: {arguments.output.parent} is not a directory")
    return arguments


def run(arguments: argparse.Namespace) -> int:
    """Drive, show what came of it, and return the exit status."""
    # Imported here because it takes seconds, and Ctrl-C in the middle of it should end as quietly as any other.
    from drive import drive
    from latency_plot import plot_latency
    from results_table import results_table
    from rich.console import Console

    from shmserve.client import ShmClient, ShmServeError

    console = Console()
    seeds = range(arguments.seed, arguments.seed + arguments.episodes)
    try:
        with ShmClient(arguments.name, runtime_dir=arguments.runtime_dir, rate=arguments.rate) as client:
            result = drive(client, seeds, arguments.rate, console)
    except ShmServeError as error:
        print(f"robot: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    period_ms = 1000 / arguments.rate
    console.print(results_table(result, REQUIRED_MEAN, period_ms))
    plot_latency(result, period_ms, arguments.output)
    console.print(f"latency plot: {arguments.output}", highlight=False, soft_wrap=True)
    return 0 if result.mean_return >= REQUIRED_MEAN else 1


def main() -> None:
    arguments = parse_arguments()
    # So that whoever stops the robot with a signal also has it leave by its `finally` blocks.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        status = run(arguments)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        print("robot: interrupted", file=sys.stderr)
        status = 130
    sys.exit(status)


if __name__ == "__main__":
    main()
