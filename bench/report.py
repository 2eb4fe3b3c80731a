"""Makes docs/benchmarks.md, its pictures, and the tables of other pages from results: `python -m bench.report`."""

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
#: Other programs had more of the processors than this: the figures are worth little.
LOUD = 0.05
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"

Rows = Sequence[Sequence[str]]


def markdown(heads: Sequence[str], rows: Rows) -> str:
    """A table: its first column is text, the others numbers.

    >>> print(markdown(["way", "p50"], [["a", "1.0"]]))
    | way | p50 |
    |---|---:|
    | a | 1.0 |
    """
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return "\n".join(f"|{'|'.join(line)}|" if line[0] == "---" else f"| {' | '.join(line)} |" for line in lines)


def benchmarks(document: Document) -> str:
    """The whole of docs/benchmarks.md."""
    return "\n\n".join(_sections(document)) + "\n"


def _sections(document: Document) -> Iterator[str]:
    machine = document["machine"]
    yield "# Benchmarks"
    yield (
        "What asking a policy on the same host costs, with shmserve and with everything else. All of it was measured in "
        "one run, every reply was checked, and nothing was left out that makes a peer faster; "
        "[bench/README.md](../bench/README.md) says how. `make bench` measures again and writes this page anew."
    )
    yield (
        f"{machine['cpu']}, {machine['cpus']} processors, governor {machine['governor']}, {machine['kernel']}, "
        f"{machine['python']}, {machine['date'][:10]}; `{document['command']}`, {document['took_s'] / 60:.0f} minutes, "
        f"{document['seconds']:g} s for each way and workload. {quiet(document)}"
    )
    yield "## Asked and reached"
    yield "What this project set out to reach, on a machine with two virtual processors."
    yield markdown(
        ["what", "asked", "reached", "met", "floor, in the same run"], [target.cells() for target in targets(document)]
    )
    if document.get("closed_loop"):
        yield from _closed_loop(document)
    if document.get("clients"):
        yield from _clients(document["clients"])
    if document.get("stages"):
        yield "## Where the time goes"
        yield f"![{PICTURES['stages.png']}](images/stages.png)"
        yield stages_table(document["stages"]["workloads"])
        yield "[performance.md](performance.md) takes a request further apart."
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
        "Round trips in microseconds, closed loop: the next request follows upon the reply. `in-process` is the policy "
        "called without any server; `Python` and `C` are the same exchange with no server in it."
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
        "The clients make and check each request in between. The open loop is four clients that ask when a Poisson "
        f"process says, {found['rate_hz']:g} times a second together; its latencies count from the time at which a "
        "request was due, so a server that falls behind shows it."
    )
    heads = ["way", *(f"{number} client{'' if number == '1' else 's'}" for number in numbers), "open loop: p50, p99"]
    yield markdown(heads, [[row["name"], *crowd_cells(row)] for row in rows])
    yield from (f"{row['name']} failed: {row['failed']}" for row in found["rows"] if "failed" in row)


def _scale(found: dict[str, Any]) -> Iterator[str]:
    yield "## Scale"
    yield "Ratios are of turns that follow upon each other in the same run."
    rows = []
    for one in found.values():
        if "figures" not in one:
            rows.append([one["title"], one.get("not_measured") or one["failed"], "", ""])
        for index, figure in enumerate(Figure(**fields) for fields in one.get("figures", ())):
            rows.append([one["title"] if index == 0 else "", figure.what, figure.text(), figure.floor_text()])
    yield markdown(["benchmark", "what", "reached", "floor, in the same run"], rows)


def stages_table(workloads: dict[str, Any]) -> str:
    """Format the medians of `Reply.timing`."""
    rows = [
        [f"{name}, {way}", *(short(medians[key]) for key in (*STAGES, "round_trip"))]
        for name, ways in workloads.items()
        for way, medians in ways.items()
    ]
    return markdown(["µs", *STAGES, "round trip"], rows)


def steps_table(workloads: dict[str, Any]) -> str:
    """What bench/profile_request.py found."""
    rows = [[what, side, *(short(one["steps"][key]) for one in workloads.values())] for key, side, what in STEPS]
    for way in ("staged", "in_place"):
        label = way.replace("_", " ")
        ours = [one[way] for one in workloads.values()]
        rows.append([f"**all steps, {label}**", "", *(short(one["steps"]) for one in ours)])
        rows.append([f"least round trip, {label}", "", *(short(one["least"]) for one in ours)])
        rows.append(
            ["the rest: the calls between the steps, waiting, memory", "", *(short(one["rest"]) for one in ours)]
        )
    return markdown(["step, least of many, µs", "side", *workloads], rows)


def measured_block(document: Document) -> str:
    """What stands between the two marks in docs/performance.md."""
    machine = document["machine"]
    parts = [f"{machine['cpu']}, {machine['cpus']} processors, {machine['python']}. {quiet(document)}"]
    if document.get("profile"):
        parts.append(steps_table(document["profile"]["workloads"]))
    if document.get("stages"):
        parts.append("Medians of what each reply says of itself:")
        parts.append(stages_table(document["stages"]["workloads"]))
    return "\n\n".join([BEGIN, *parts, END])


def with_block(text: str, document: Document) -> str:
    """A page with what stands between the marks made anew; raises ValueError for a page without them."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page has no {BEGIN} and {END} around the tables that are written into it")
    return before + measured_block(document) + after


def quiet(document: Document) -> str:
    """One sentence about what else ran."""
    shares = list(parts_of(document))
    others = max((share["other_cpu_share"] for share in shares), default=0.0)
    steal = max((share["steal_share"] for share in shares), default=0.0)
    text = f"Other programs had at most {100 * others:.0f} % of the processors, the hypervisor {100 * steal:.0f} %"
    if max(others, steal) > LOUD:
        return f"**{text}: the machine was not quiet, and these figures are not worth keeping.**"
    return f"{text}."


def parts_of(document: Document) -> Iterator[dict[str, float]]:
    """Every part that noted what else ran."""
    for part in document.values():
        if isinstance(part, dict):
            if "other_cpu_share" in part:
                yield part
            else:
                yield from parts_of(part)


def size(array_bytes: int) -> str:
    """Bytes as people read them.

    >>> size(216), size(301_088), size(6_220_824)
    ('216 B', '301 kB', '6.2 MB')
    """
    if array_bytes < 1000:
        return f"{array_bytes} B"
    return f"{array_bytes / 1e3:.0f} kB" if array_bytes < 1e6 else f"{array_bytes / 1e6:.1f} MB"


def write(document: Document, docs: Path) -> None:
    """All of it."""
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
