"""Generator of docs/explanation/benchmarks.md, its pictures, and the tables of other pages: `python -m bench.report`."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench import rates, results, varying
from bench.distances import C_ASLEEP, PY2
from bench.distances import HEADS as HEADS_OF_DISTANCES
from bench.distances import lines as distance_lines
from bench.peers.rows import short
from bench.plots import DISTRIBUTION_OF, PICTURES, draw, measured
from bench.profile_request import STEPS
from bench.readme_table import with_figures
from bench.results import Document
from bench.scale.figure import Figure, amount
from bench.stages import STAGES
from bench.states import STATES
from bench.targets import targets
from bench.varying_workloads import FIXED, VARYING
from bench.workloads import workload

DOCS = Path(__file__).resolve().parent.parent / "docs"
READMES = ("README.md", "README_CN.md")
#: The folder of the two pages, within that of the documents.
PAGES = "explanation"
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


def benchmarks(
    document: Document,
    states_run: Document | None = None,
    rates_run: Document | None = None,
    scales_run: Document | None = None,
) -> str:
    """Return the complete text of docs/explanation/benchmarks.md.

    `states_run` is a later run of the distances and varying sizes, `rates_run` one of `bench.rates`, `scales_run` one of
    some benchmarks of bench/scale.
    """
    if scales_run is not None:
        document = {**document, "scale": {**document.get("scale", {}), **scales_run["scale"]}}
    return "\n\n".join(_sections(document, states_run, rates_run, scales_run)) + "\n"


def kept(name: str) -> Document | None:
    """Return the kept run of this name, or None."""
    path = results.path_of(name)
    return results.read(path) if path.exists() else None


def _run_of(document: Document) -> str:
    machine = document["machine"]
    return (
        f"{machine['cpu']}, {machine['cpus']} processors, governor {machine['governor']}, {machine['kernel']}, "
        f"{machine['python']}, {machine['date'][:10]}; `{document['command']}`, {document['took_s'] / 60:.0f} minutes, "
        f"{document['seconds']:g} s for each way and workload. {quiet(document)}"
    )


def _sections(
    document: Document, states_run: Document | None, rates_run: Document | None, scales_run: Document | None
) -> Iterator[str]:
    machine = document["machine"]
    yield "# Benchmarks"
    yield (
        "The cost of a request to a policy on the same host, with shmserve and with other servers. All figures are from "
        "one run, every reply was checked, and no peer runs without something that makes it faster; "
        "[bench/README.md](../../bench/README.md) describes the method. `make bench` measures again and rewrites this page."
    )
    yield _run_of(document)
    if rates_run is not None:
        yield from at_rates(rates_run)
    yield from _distances(document if states_run is None else states_run, is_apart=states_run is not None)
    if states_run is not None and "varying" in states_run:
        yield from _varying(states_run["varying"]["workloads"])
    yield "## Targets"
    yield "The targets that are not a distance to a floor, set for a machine with two virtual processors."
    yield markdown(
        ["figure", "target", "measured", "met", "floor, in the same run"],
        [target.cells() for target in targets(document)],
    )
    if document.get("closed_loop"):
        yield from _closed_loop(document)
    if document.get("varying") and states_run is None:
        yield from _varying(document["varying"]["workloads"])
    if document.get("clients"):
        yield from _clients(document["clients"])
    if document.get("stages"):
        yield "## Where the time goes"
        yield f"![{PICTURES['stages.png']}](../images/stages.png)"
        yield "The stages are measured in a separate part of the run, so their sums differ from the medians of the tables above."
        yield shares_table(document["stages"]["workloads"])
        yield "[performance.md](performance.md) has the microseconds, and measures each step of a request."
    if document.get("scale"):
        yield from _scale(document["scale"], scales_run)
    yield "## Versions"
    yield ", ".join(f"{name} {version}" for name, version in machine["packages"].items()) + "."
    if document["left_out"]:
        yield "Left out: " + "; ".join(f"{name} ({reason})" for name, reason in document["left_out"].items()) + "."


def _distances(document: Document, *, is_apart: bool = False) -> Iterator[str]:
    yield "## Distances to the floors"
    if is_apart:
        yield "The distances and the varying sizes are of a later run than the rest of this page: " + _run_of(document)
    yield (
        "How far shmserve is from the same exchange without a server, and from other servers: ratios of two figures of the "
        "same run and state, which mean the same on another machine. Py2 and Py1 are bare Python that spins, with two "
        "copies and with one. In brackets the aim; **bold** misses it, `-` was not measured."
    )
    yield "; ".join(f"*{state.name}*: {state.says}" for state in STATES.values()) + ". " + loads(document)
    yield markdown(
        HEADS_OF_DISTANCES,
        [
            [what, *(f"**{one.cell()}**" if one.met is False else one.cell() for one in states), floor]
            for what, states, floor in distance_lines(document)
        ],
    )


def at_rates(document: Document) -> Iterator[str]:
    """Yield the section on the rates of robots, from a run of `bench.rates`."""
    yield "## At the rate of a robot"
    yield (
        "One request at each beat of an absolute clock; the client and the server sleep in between, so both are cold, and a "
        "beat that passes before the reply to an earlier request is missed. The closed loop of the other sections is hot. "
        "`Python` and `C` are the exchange without a server, each side asleep at a semaphore. The engine's share is that of "
        "one processor, with the policy's own time. " + _run_of(document)
    )
    for name, found in document["rates"].items():
        called = f"{name}, {size(workload(name).array_bytes)}"
        yield _rates_table(f"{called}: p50 / p99 / p99.9, µs", found, (0, 1, 2))
        yield _rates_table(f"{called}: p50 and p99 to Python, Unix socket's p50 to it", found, (4, 5, 6))
        yield _rates_table(f"{called}: missed beats, the engine's share", found, (3, 7))
        yield from (
            f"{name} at {rate} Hz: {row['name']} failed: {row['failed']}"
            for rate, part in found.items()
            for row in part["rows"]
            if "failed" in row
        )
    if document["left_out"]:
        yield "Left out: " + "; ".join(f"{name} ({reason})" for name, reason in document["left_out"].items()) + "."


def _rates_table(what: str, found: dict[str, Any], columns: Sequence[int]) -> str:
    """Format some columns of `bench.rates` for every way, with a column for each rate."""
    names = list(dict.fromkeys(row["name"] for part in found.values() for row in part["rows"]))
    rows = []
    for name in names:
        row = [name]
        for part in found.values():
            texts = next((rates.cells(part["rows"], one) for one in part["rows"] if one["name"] == name), None)
            row.append("-" if texts is None else " / ".join(texts[column] or "-" for column in columns))
        rows.append(row)
    return markdown([what, *(f"{rate} Hz" for rate in found)], rows)


def loads(document: Document) -> str:
    """Return one sentence about the processors that the programs of the states used.

    >>> loads({"states": {"busy": {"closed_loop": {"tiny": {"loops_cpu_share": 0.5}, "vga": {"loops_cpu_share": 0.48}}}}})
    'The programs of the state had 48 to 50 % of the processors (busy).'
    """
    texts = []
    for state in STATES:
        found = results.part_of(document, state).get("closed_loop", {})
        shares = [100 * part["loops_cpu_share"] for part in found.values() if part.get("loops_cpu_share")]
        if shares:
            texts.append(f"{min(shares):.0f} to {max(shares):.0f} % of the processors ({state})")
    return f"The programs of the state had {', '.join(texts)}." if texts else "Only the quiet state was measured."


def _closed_loop(document: Document) -> Iterator[str]:
    yield "## One client"
    yield (
        "Round trips of a closed loop: the client sends the next request after the reply. Each is given as a multiple of a "
        "floor of the same workload and state, whose time is in the head. `in-process` is the policy called without a "
        "server; `Python` and `C` are the same exchange without a server."
    )
    yield f"![{PICTURES['latency-by-payload.png']}](../images/latency-by-payload.png)"
    for state in STATES:
        loops = results.part_of(document, state).get("closed_loop")
        if loops:
            yield f"### {state.capitalize()}"
            yield multiples(loops, "p50", "p50_us", (PY2,))
            yield multiples(loops, "p99", "p99_us", (PY2, C_ASLEEP))
            yield from (
                f"{name}: {row['name']} failed: {row['failed']}"
                for name, found in loops.items()
                for row in found["rows"]
                if "failed" in row
            )
    yield "### The calling thread"
    yield "Processor time of the thread that asks, which a control loop loses, as a multiple of that of C that sleeps."
    yield multiples(document["closed_loop"], "client thread", "client_thread_cpu_us", (C_ASLEEP,))
    if DISTRIBUTION_OF in document["closed_loop"]:
        yield f"![{PICTURES['distribution.png']}](../images/distribution.png)"
        yield "The vertical axis is stretched towards 100 %, as in a plot of percentiles; each line ends with the slowest request of its way."


def multiples(loops: dict[str, Any], what: str, key: str, floors: Sequence[str]) -> str:
    """Format one figure of every way and workload as a multiple of the best of the floors, which the head names."""
    names = list(dict.fromkeys(row["name"] for found in loops.values() for row in measured(found["rows"])))
    heads, columns = [f"{what}, to {' or '.join(floors)}"], []
    for name, found in loops.items():
        rows = {row["name"]: row for row in measured(found["rows"])}
        floor = min((rows[one][key] for one in floors if one in rows), default=None)
        at = "" if floor is None else f": {short(floor)} µs"
        heads.append(f"{name}, {size(found['array_bytes'])}{at}")
        columns.append({way: multiple(row, key, floor) for way, row in rows.items()})
    return markdown(heads, [[name, *(column.get(name, "-") for column in columns)] for name in names])


def multiple(row: dict[str, Any], key: str, floor: float | None) -> str:
    """Format a figure as a multiple; a percentile of less than one request is omitted.

    >>> multiple({"requests": 500, "p99_us": 90.0}, "p99_us", 60.0), multiple({"requests": 50, "p99_us": 9.0}, "p99_us", 6.0)
    ('1.50', '-')
    """
    if not floor or (key == "p99_us" and row["requests"] < 100):
        return "-"
    return amount(row[key] / floor, "")


def _varying(workloads: dict[str, Any]) -> Iterator[str]:
    yield "## Varying sizes"
    yield (
        "Requests that differ from the last one in the length of something or in their structure, p50, to the fixed "
        "observation by the same way; the policy alone shows the part that no transport can save. Refused is an observation "
        "that a way does not accept."
    )
    ways = list(dict.fromkeys(row["name"] for rows in workloads.values() for row in rows))
    heads = ["observation", *(f"{way}, to fixed" for way in ways), "aim", f"{varying.SOCKET} to shmserve", "aim"]
    rows = []
    for name, beside in workloads.items():
        kind = VARYING[name]
        aim = "" if name == FIXED else f"≤ {varying.NEW_STRUCTURE_AIM if kind.new_structure else varying.FIXED_AIM:g}"
        cells = [_to_fixed(workloads, name, beside, way) for way in ways]
        socket = varying.to_socket(workloads, name)
        faster = varying.DETECTIONS_SOCKET_AIM if name == "detections" else varying.SOCKET_AIM
        rows.append([kind.what, *cells, aim, "-" if socket is None else f"{socket:.2f}", f"≥ {faster:g}"])
    yield markdown(heads, rows)
    yield from varying.notes(workloads)


def _to_fixed(workloads: dict[str, Any], name: str, beside: Sequence[dict[str, Any]], way: str) -> str:
    row = next((row for row in beside if row["name"] == way), {"failed": ""})
    if "p50_us" not in row:
        return "refused" if "refused" in row else "failed"
    ratio = varying.to_fixed(workloads, name, way)
    return "-" if ratio is None else f"{ratio:.2f}"


def _clients(found: dict[str, Any]) -> Iterator[str]:
    rows = [row for row in found["rows"] if "failed" not in row]
    numbers = list(rows[0]["clients"]) if rows else []
    floor = next((row for row in rows if row["name"] == varying.FLOOR), None)
    yield "## Several clients"
    yield (
        f"`{found['workload']}`; requests per second of all clients together as a share of those of `in-process`, which has "
        "no server and no other client to wait for, and in brackets the p99 of their round trips as a multiple. The clients "
        "make each request and check each reply in between. In the open loop four clients send requests at the times of a "
        f"Poisson process, {found['rate_hz']:g} per second together; a latency counts from the time at which the request "
        "was due, so a server that falls behind is visible."
    )
    heads = ["way", *(f"{number} client{'' if number == '1' else 's'}" for number in numbers), "open loop: p50, p99"]
    yield markdown(heads, [[row["name"], *crowd_multiples(row, floor)] for row in rows])
    yield from (f"{row['name']} failed: {row['failed']}" for row in found["rows"] if "failed" in row)


def crowd_multiples(row: dict[str, Any], floor: dict[str, Any] | None) -> list[str]:
    """Return the texts of a row as shares and multiples of the row of the policy without a server.

    >>> at = {"1": {"requests_per_s": 50.0, "p99_us": 30.0}}
    >>> alone = {"1": {"requests_per_s": 200.0, "p99_us": 10.0}}
    >>> late = {"p50_us": 6.0, "p99_us": 30.0, "unsent": 0}
    >>> crowd_multiples({"clients": at, "open_loop": late}, {"clients": alone, "open_loop": {**late, "p99_us": 20.0}})
    ['25.0 % (3.00 x)', '1.00 x, 1.50 x']
    """
    if floor is None:
        return ["-"] * (len(row["clients"]) + 1)
    closed = [
        f"{amount(100 * one['requests_per_s'] / floor['clients'][number]['requests_per_s'], '%')} "
        f"({amount(one['p99_us'] / floor['clients'][number]['p99_us'], 'x')})"
        for number, one in row["clients"].items()
    ]
    late, alone = row["open_loop"], floor["open_loop"]
    unsent = f", {late['unsent']:,} unsent" if late["unsent"] else ""
    times = ", ".join(amount(late[key] / alone[key], "x") for key in ("p50_us", "p99_us"))
    return [*closed, f"{times}{unsent}"]


def _scale(found: dict[str, Any], later: Document | None) -> Iterator[str]:
    yield "## Scale"
    yield "A ratio compares consecutive turns of the same run."
    if later is not None:
        titles = ", ".join(f"*{one['title']}*" for one in later["scale"].values())
        yield f"These are of a later run than the rest of this page: {titles}. {_run_of(later)}"
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


def shares_table(workloads: dict[str, Any]) -> str:
    """Format the stages of `Reply.timing` as shares of the round trip, and that as a multiple of the policy's time."""
    rows = [
        [
            f"{name}, {way}",
            *(amount(100 * medians[key] / medians["round_trip"], "%") for key in STAGES),
            amount(medians["round_trip"] / medians["infer"], "x"),
        ]
        for name, ways in workloads.items()
        for way, medians in ways.items()
    ]
    return markdown(["share of the round trip", *STAGES, "round trip, to infer"], rows)


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
    """Return the block between the two marks in docs/explanation/performance.md."""
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
    later = (kept(results.STATES_RUN), rates.kept_run(), kept(results.SCALES_RUN)) if docs == DOCS else ()
    (docs / PAGES / "benchmarks.md").write_text(benchmarks(document, *later))
    performance = docs / PAGES / "performance.md"
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
