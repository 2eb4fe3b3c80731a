"""Round trip of a request against a call of the same model in this process from a page-locked tensor (us)."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.service import Service
from shmserve.client import ShmClient

from . import policies

_WARM = 50


def recorded(call: Callable[[], object]) -> Callable[[], object]:
    """Record the call as a CUDA graph, and return what launches it."""
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    with torch.cuda.graph(graph):
        call()
    replay: Callable[[], object] = graph.replay
    return replay


def in_process(name: str, image: np.ndarray[Any, Any], seconds: float, *, graph: bool) -> list[float]:
    """Measure the floor: page-locked image in, model, action out, wait; `graph`: the first three as one CUDA graph."""
    device = torch.device("cuda")
    model = policies.made(name, device)
    host = torch.from_numpy(image).pin_memory()
    back = torch.empty(7).pin_memory()
    taken: list[float] = []

    def call() -> None:
        back.copy_(model(host.to(device, non_blocking=True)), non_blocking=True)

    with torch.inference_mode():
        launch = recorded(call) if graph else call
        until = time.monotonic() + seconds
        while time.monotonic() < until or len(taken) < 2 * _WARM:
            began = time.perf_counter_ns()
            launch()
            torch.cuda.current_stream().synchronize()
            taken.append((time.perf_counter_ns() - began) / 1e3)
    return taken[_WARM:]


def service(name: str, **keys: int | str) -> Service:
    """Make a daemon of one of the models on the GPU, not started."""
    model: dict[str, int | str] = {"entry": f"policy:{name.capitalize()}Policy", **keys}
    return Service(Path(policies.__file__), model=model, settings={"device": "cuda"})


def asked(client: ShmClient, image: np.ndarray[Any, Any], seconds: float, taken: list[float]) -> None:
    """Send requests, one after the other."""
    until = time.monotonic() + seconds
    while time.monotonic() < until or len(taken) < 2 * _WARM:
        began = time.perf_counter_ns()
        client.infer({"image": image})
        taken.append((time.perf_counter_ns() - began) / 1e3)


def through(served: Service, image: np.ndarray[Any, Any], clients: int, seconds: float) -> list[float]:
    """Measure the same through the service, from n clients at a time."""
    taken: list[list[float]] = [[] for _ in range(clients)]
    with_all = [served.client() for _ in range(clients)]
    threads = [
        threading.Thread(target=asked, args=(client, image, seconds, found))
        for client, found in zip(with_all, taken, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for client in with_all:
        client.close()
    return [each for found in taken for each in found[_WARM:]]


def summed(taken: list[float]) -> dict[str, float]:
    ranked = sorted(taken)
    return {"p50_us": round(statistics.median(ranked), 1), "p99_us": round(ranked[int(len(ranked) * 0.99)], 1)}


def measure(seconds: float, models: Sequence[str]) -> list[dict[str, Any]]:
    """Measure a row for each of the models, with and without graph, and number of clients, beside the same call in process."""
    image = np.random.default_rng(0).integers(0, 255, (480, 640, 3), np.uint8)
    rows = []
    for name in models:
        for graph in (False, True):
            floor = summed(in_process(name, image, seconds, graph=graph))
            with service(name, cuda_graph=graph) as served:
                for clients in (1, 4):
                    found = summed(through(served, image, clients, seconds))
                    added = round(found["p50_us"] - floor["p50_us"], 1)
                    rows.append({"model": name, "graph": graph, "clients": clients, **found})
                    rows[-1] |= {"in_process_p50_us": floor["p50_us"], "added_p50_us": added}
    return rows
