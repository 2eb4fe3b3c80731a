"""shmserve-admin infer: one observation to the running service, its action and its timing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from .click_types import Number
from .example import fetch_example
from .exit_status import fail, with_exit_status
from .observation import ObservationSource, observation_options
from .target import Target, print_json, show

#: Numbers of an entry that the table shows, and that JSON has; of a longer one the smallest and the largest follow.
_SHOWN, _IN_JSON = 6, 64
_STAGES = ("queued", "staged", "infer", "copied", "round_trip")


@click.command()
@observation_options
@click.option("--repeat", type=click.IntRange(1, 1_000_000), default=1, show_default=True, help="Requests, one by one.")
@click.option("--out", type=click.Path(path_type=Path, readable=False), help="Write the action to this .npz.")
@click.option(
    "--timeout", type=Number(0, 86_400), default=10.0, show_default=True, help="Seconds that a request may take."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
@click.pass_obj
@with_exit_status
def infer(target: Target, /, repeat: int, out: Path | None, timeout: float, as_json: bool, **observation: Any) -> None:
    """Try the model: send an observation, and print the action.

    Without --example the observation is the model's own example, or else zeros, shaped as the first request that it has served;
    --shape, --image and --set give single entries, by their names in the contract. The action is printed with the time of
    each stage and the model's version; with --repeat that of the last request, and percentiles of the times. Entries of
    --out have the names that `[warmup] expected` of a package needs.

    \b
    shmserve-admin infer
    shmserve-admin infer --example seen.npz --image camera.front=frame.png --set task="fold the towel"
    shmserve-admin --name arm infer --repeat 200 --json
    """
    from ..shm_client import ShmClient

    source = ObservationSource.of(observation)
    with target.connection() as connection:
        state = connection.call("Status")["status"]["state"]
        example = fetch_example(connection) if state in ("ready", "updating") and source.example is None else None
    if state not in ("ready", "updating"):
        fail(f"service {target.name!r} is {state}: shmserve-admin wait-ready")
    with ShmClient(target.name, runtime_dir=target.runtime_dir, timeout=timeout, max_retries=0) as client:
        model = client.describe()
        tree, origin = source.make(model, example)
        replies = []
        for _ in range(repeat):
            reply = client.request(tree)
            replies.append(vars(reply.timing))
    if out is not None:
        _write(out, reply.action)
    result = {
        "service": target.name,
        "model": {"name": model["name"], "version": reply.model_version, "device": model["device"]},
        "observation": {"source": origin, "entries": _described(tree)},
        "action": _with_values(reply.action),
        "clamped": reply.clamped,
        "requests": repeat,
        "timing_us": {stage: _summary([timing[f"{stage}_us"] for timing in replies]) for stage in _STAGES},
    }
    if target.as_json or as_json:
        print_json(result)
    else:
        _show(result, reply.action)


def _described(tree: Any) -> dict[str, Any]:
    from shmserve.base_values import plain_tree
    from shmserve.contract import describe_tree

    return describe_tree(plain_tree(tree, "observation"))


def _with_values(action: Any) -> dict[str, Any]:
    """Return the entries of an action with their values, or of a long one the smallest and the largest."""
    import numpy as np

    from shmserve.contract import flatten_with_path

    found = _described(action)
    for name, value in flatten_with_path(action):
        array = np.asarray(value)
        if array.size <= _IN_JSON:
            found[name]["values"] = _json_value(value)
        elif array.dtype.kind in "biuf":
            found[name] |= {"min": _json_value(array.min()), "max": _json_value(array.max())}
    return found


def _json_value(value: Any) -> Any:
    """Return a value as JSON has it; NaN, infinity and what JSON has no word for as text.

    >>> import numpy as np
    >>> _json_value(np.array([1.5, np.nan])), _json_value(b"raw"), _json_value(None)
    ([1.5, 'nan'], "b'raw'", None)
    """
    import math

    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [_json_value(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def _write(out: Path, action: Any) -> None:
    import numpy as np

    from shmserve.contract import flatten_with_path
    from shmserve.npz_file import write_npz

    values: dict[str, Any] = {}
    for name, value in flatten_with_path(action):
        array = np.asarray(value)
        if array.dtype.name == "bfloat16":  # which a file of numpy does not have
            array = array.astype(np.float32)
        if array.dtype.kind not in "biufcUS":
            fail(f"{name or 'the action'} is a {type(value).__name__}, which an .npz cannot hold: leave --out out")
        values[name or "action"] = array
    write_npz(out, values)


def _summary(values: list[float]) -> dict[str, float]:
    """Return the last duration, and of several the percentiles.

    >>> _summary([3.0]), _summary([1.0, 2.0, 3.0])
    ({'last': 3.0}, {'last': 3.0, 'p50': 2.0, 'p99': 2.98, 'max': 3.0})
    """
    import numpy as np

    found = {"last": round(values[-1], 2)}
    if len(values) > 1:
        found |= {f"p{percent}": round(float(np.percentile(values, percent)), 2) for percent in (50, 99)}
        found["max"] = round(max(values), 2)
    return found


def value_text(value: Any) -> str:
    """Return an entry's value in a few words.

    >>> import numpy as np
    >>> value_text(np.arange(3.0)), value_text(np.zeros((16, 7), np.float32)), value_text("fold"), value_text([])
    ('0, 1, 2', '0, 0, 0, 0, 0, 0 ... (112 numbers from 0 to 0)', "'fold'", '[]')
    """
    import numpy as np

    array = np.asarray(value)
    if array.dtype.kind not in "biuf" or not array.size:
        text = repr(value)
        return text if len(text) <= 100 else f"{text[:100]}..."
    words = ", ".join(f"{number:.4g}" if array.dtype.kind == "f" else str(number) for number in array.flat[:_SHOWN])
    if array.size <= _SHOWN:
        return words
    return f"{words} ... ({array.size} numbers from {array.min():.4g} to {array.max():.4g})"


def _show(result: Mapping[str, Any], action: Any) -> None:
    from rich.text import Text

    from shmserve.contract import entry_text, flatten_with_path

    from .responsive_table import bare_table
    from .times_table import times_table

    model = result["model"]
    print(
        f"{model['name']} version {model['version']} on {model['device']}, asked with {result['observation']['source']}"
    )
    entries = bare_table()
    for title in ("action", "", ""):
        entries.add_column(title)
    for name, value in flatten_with_path(action):
        entries.add_row(Text(name or "(the action)"), Text(entry_text(result["action"][name])), Text(value_text(value)))
    show(entries)
    if result["clamped"]:
        print("numbers outside the range that the model declares were clamped")
    show(times_table(result["timing_us"], [*result["timing_us"]["round_trip"]], "round_trip"))
