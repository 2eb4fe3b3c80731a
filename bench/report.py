"""Generator of docs/benchmarks.md, its pictures, and the tables of other pages: `python -m bench.report`."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench import results
from bench.peers.rows import HEADS, cells, crowd_cells, short
from bench.plots import DISTRIBUTION_OF, PICTURES, draw, measured
from bench.profile_request import STEPS
from bench.readme_table import with_figures
from bench.results import Document
from bench.scale.figure import Figure
from bench.stages import STAGES
from bench.targets import targets

DOCS = Path(__file__).resolve().parent.parent / "docs"
READMES = ("README.md", "README_CN.md")
#: Share of the processors used by other programs above which the figures are marked as unreliable.
LOUD = 0.05
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"

Rows = Sequence[Sequence[str]]


def markdown(heads: Sequence[str], rows: Rows) -> str:
    """Format a table whose first column is text and whose others are numbers.

    >>> print(markdown(["way", "p50"], [["a", "1.0"]]))
    | way | p50 |
    |---|---:|
    | a | 1.0 |
    """
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return "\n".join(f"|{'|'.join(line)}|" if line[0] == "---" else f"| {' | '.join(line)} |" for line in lines)


def benchmarks(document: Document) -> str:
    """Return the complete text of docs/benchmarks.md."""
    return "\n\n".join(_sections(document)) + "\n"


def _sections(document: Document) -> Iterator[str]:
    machine = document["machine"]
    yield "# Benchmarks"
    yield (
        "The cost of a request to a policy on the same host, with shmserve and with other servers. All figures are from "
        "one run, every reply was checked, and no peer runs without something that makes it faster; "
        "[bench/README.md](../bench/README.md) describes the method. `make bench` measures again and rewrites this page."
    )
    yield (
        f"{machine['cpu']}, {machine['cpus']} processors, governor {machine['governor']}, {machine['kernel']}, "
        f"{machine['python']}, {machine['date'][:10]}; `{document['command']}`, {document['took_s'] / 60:.0f} minutes, "
        f"{document['seconds']:g} s for each way and workload. {quiet(document)}"
    )
    yield "## Targets"
    yield "The performance targets of this project, set for a machine with two virtual processors."
    yield markdown(
        ["figure", "target", "measured", "met", "floor, in the same run"],
        [target.cells() for target in targets(document)],
    )
    if document.get("closed_loop"):
        yield from _closed_loop(document)
    if document.get("clients"):
        yield from _clients(document["clients"])
    if document.get("stages"):
        yield "## Where the time goes"
        yield f"![{PICTURES['stages.png']}](images/stages.png)"
        yield stages_table(document["stages"]["workloads"])
        yield "[performance.md](performance.md) measures each step of a request."
    if document.get("scale"):
        yield from _scale(document["scale"])
    yield "## Versions"
    yield ", ".join(f"{name} {version}" for name, version in machine["packages"].items()) + "."
    if document["left_out"]:
        yield "Left out: " + "; ".join(f"{name} ({reason})" for name, reason in document["left_out"].items()) + "."


def _closed_loop(document: Document) -> Iterator[str]:
    loops = document["closed_loop"]
    yield "## One client"
    yield (
        "Round trips in microseconds, closed loop: the client sends the next request after the reply. `in-process` is the "
        "policy called without a server; `Python` and `C` are the same exchange without a server."
    )
    yield f"![{PICTURES['latency-by-payload.png']}](images/latency-by-payload.png)"
    names = list(dict.fromkeys(row["name"] for found in loops.values() for row in measured(found["rows"])))
    heads = ["p50, µs", *(f"{name}, {size(found['array_bytes'])}" for name, found in loops.items())]
    medians = [{row["name"]: short(row["p50_us"]) for row in measured(found["rows"])} for found in loops.values()]
    yield markdown(heads, [[name, *(one.get(name, "-") for one in medians)] for name in names])
    if DISTRIBUTION_OF in loops:
        yield f"![{PICTURES['distribution.png']}](images/distribution.png)"
    for name, found in loops.items():
        yield f"### {name}: {found['array_bytes']:,} bytes of arrays"
        yield markdown(["µs", *HEADS], [[row["name"], *cells(row)] for row in measured(found["rows"])])
        yield from (f"{row['name']} failed: {row['failed']}" for row in found["rows"] if "failed" in row)


def _clients(found: dict[str, Any]) -> Iterator[str]:
    rows = [row for row in found["rows"] if "failed" not in row]
    numbers = list(rows[0]["clients"]) if rows else []
    yield "## Several clients"
    yield (
        f"`{found['workload']}`; requests per second of all clients together, and the p99 of their round trips in µs. "
        "The clients make each request and check each reply in between. In the open loop four clients send requests at the "
        f"times of a Poisson process, {found['rate_hz']:g} per second together; a latency counts from the time at which the "
        "request was due, so a server that falls behind is visible."
    )
    heads = ["way", *(f"{number} client{'' if number == '1' else 's'}" for number in numbers), "open loop: p50, p99"]
    yield markdown(heads, [[row["name"], *crowd_cells(row)] for row in rows])
    yield from (f"{row['name']} failed: {row['failed']}" for row in found["rows"] if "failed" in row)


def _scale(found: dict[str, Any]) -> Iterator[str]:
    yield "## Scale"
    yield "A ratio compares consecutive turns of the same run."
    rows = []
    for one in found.values():
        if "figures" not in one:
            rows.append([one["title"], one.get("not_measured") or one["failed"], "", ""])
        for index, figure in enumerate(Figure(**fields) for fields in one.get("figures", ())):
            rows.append([one["title"] if index == 0 else "", figure.what, figure.text(), figure.floor_text()])
    yield markdown(["benchmark", "figure", "measured", "floor, in the same run"], rows)


def stages_table(workloads: dict[str, Any]) -> str:
    """Format the medians of `Reply.timing`."""
    rows = [
        [f"{name}, {way}", *(short(medians[key]) for key in (*STAGES, "round_trip"))]
        for name, ways in workloads.items()
        for way, medians in ways.items()
    ]
    return markdown(["µs", *STAGES, "round trip"], rows)


def steps_table(workloads: dict[str, Any]) -> str:
    """Format the results of bench/profile_request.py."""
    rows = [[what, side, *(short(one["steps"][key]) for one in workloads.values())] for key, side, what in STEPS]
    for way in ("staged", "in_place"):
        label = way.replace("_", " ")
        ours = [one[way] for one in workloads.values()]
        rows.append([f"**all steps, {label}**", "", *(short(one["steps"]) for one in ours)])
        rows.append([f"least round trip, {label}", "", *(short(one["least"]) for one in ours)])
        rows.append(
            ["the rest: the calls between the steps, waiting, memory", "", *(short(one["rest"]) for one in ours)]
        )
    return markdown(["step, minimum of many, µs", "side", *workloads], rows)


def measured_block(document: Document) -> str:
    """Return the block between the two marks in docs/performance.md."""
    machine = document["machine"]
    parts = [f"{machine['cpu']}, {machine['cpus']} processors, {machine['python']}. {quiet(document)}"]
    if document.get("profile"):
        parts.append(steps_table(document["profile"]["workloads"]))
    if document.get("stages"):
        parts.append("Medians of the timing in the replies:")
        parts.append(stages_table(document["stages"]["workloads"]))
    return "\n\n".join([BEGIN, *parts, END])


def with_block(text: str, document: Document) -> str:
    """Return the page with the block between the marks replaced; raise ValueError if it has no marks."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page has no {BEGIN} and {END} around the tables that are written into it")
    return before + measured_block(document) + after


def quiet(document: Document) -> str:
    """Return one sentence about the load of other programs."""
    shares = list(parts_of(document))
    others = max((share["other_cpu_share"] for share in shares), default=0.0)
    steal = max((share["steal_share"] for share in shares), default=0.0)
    text = f"Other programs had at most {100 * others:.0f} % of the processors, the hypervisor {100 * steal:.0f} %"
    if max(others, steal) > LOUD:
        return f"**{text}: the machine was busy, and these figures are not reliable.**"
    return f"{text}."


def parts_of(document: Document) -> Iterator[dict[str, float]]:
    """Yield every part that recorded the load of other programs."""
    for part in document.values():
        if isinstance(part, dict):
            if "other_cpu_share" in part:
                yield part
            else:
                yield from parts_of(part)


def size(array_bytes: int) -> str:
    """Format a number of bytes for readers.

    >>> size(216), size(301_088), size(6_220_824)
    ('216 B', '301 kB', '6.2 MB')
    """
    if array_bytes < 1000:
        return f"{array_bytes} B"
    return f"{array_bytes / 1e3:.0f} kB" if array_bytes < 1e6 else f"{array_bytes / 1e6:.1f} MB"


def write(document: Document, docs: Path) -> None:
    """Write every page and picture."""
    (docs / "benchmarks.md").write_text(benchmarks(document))
    performance = docs / "performance.md"
    performance.write_text(with_block(performance.read_text(), document))
    for readme in (docs.parent / name for name in READMES):
        if readme.exists():
            readme.write_text(with_figures(readme.read_text(), document))
    draw(document, docs / "images")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.report", description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=results.path_of(results.REFERENCE), help="what to show")
    parser.add_argument("--docs", type=Path, default=DOCS, help="where to write")
    options = parser.parse_args(arguments)
    write(results.read(options.results), options.docs)


if __name__ == "__main__":
    main()
