"""Planted bugs of the GPU path, and the tests that find them: `python -m tests.support.mutants [NAME ...] [--table]`.

Each bug is planted in a copy of the checkout, in which its tests must then fail. `--table` prints the table of
docs/development/gpu-mutants.md instead.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.support.folders import REPOSITORY

_DEVICE = "daemon/engine/device"
_ARENA = "tests/unit/engine/device/test_arena.py"
_CUDA = "tests/unit/engine/device/test_cuda.py"
_PARTS = "tests/unit/engine/device/test_device_parts.py"
_GPU = "tests/gpu/test_gpu.py"
_COPIES = "tests/integration/device/test_device_copies.py"
_ROWS = "tests/integration/device/test_device_rows.py"
_TROUBLE = "tests/integration/device/test_device_trouble.py"


@dataclass(frozen=True)
class Mutant:
    """One planted bug: `old` becomes `new` in a file of daemon/engine/device/."""

    name: str
    bug: str
    file: str
    old: str
    new: str
    #: The file of the tests that find it, and the test.
    tests: str
    test: str


MUTANTS = [
    Mutant(
        "M01",
        "a host row is written before its copy is done",
        "arena.py",
        "        if not self._copied.query():\n            self._copied.synchronize()\n",
        "",
        _ARENA,
        "test_the_next_batch_waits_until_the_host_memory_is_free",
    ),
    Mutant(
        "M02",
        "a copy ahead does not wait for the model",
        "arena.py",
        "            self._device.hold(self.finished, ahead=True)",
        "            pass",
        _COPIES,
        "test_a_direct_copy_ahead_waits_for_the_model_before_it",
    ),
    Mutant(
        "M03",
        "the model does not wait for the copy ahead",
        "arena.py",
        "        if ahead:\n            self._device.hold(self._copied)\n",
        "",
        _ARENA,
        "test_bytes_copied_ahead_are_in_place_when_the_model_runs",
    ),
    Mutant(
        "M04",
        "the event behind the copies is on the wrong stream",
        "arena.py",
        "self._device.record(self._copied, ahead=ahead)",
        "self._device.record(self._copied)",
        _ARENA,
        "test_bytes_copied_ahead_are_in_place_when_the_model_runs",
    ),
    Mutant(
        "M05",
        "new device memory is used by the copy stream at once",
        "arena.py",
        "        self._device.record(self.finished)\n\n    def _begin",
        "\n    def _begin",
        _ARENA,
        "test_new_memory_is_not_copied_to_before_its_previous_use_has_ended",
    ),
    Mutant(
        "M06",
        "page-locked memory is given away under a copy",
        "arena.py",
        "        self._copied.synchronize()  # or the old memory could be released during a copy\n",
        "",
        _ARENA,
        "test_memory_that_grew_is_not_given_away_under_a_copy",
    ),
    Mutant(
        "M07",
        "the end of a batch is not recorded",
        "arena.py",
        "        self._device.record(self.finished)\n\n    def done",
        "        pass\n\n    def done",
        _ARENA,
        "test_two_arenas_in_turn_have_no_race",
    ),
    Mutant(
        "M08",
        "what a policy keeps is overwritten",
        "arena.py",
        "        if not self.fixed and (self._own is None or self._own != sharing(self.memory)):",
        "        if False:",
        _ARENA,
        "test_memory_that_a_policy_keeps_is_not_written_again",
    ),
    Mutant(
        "M08b",
        "views that a policy keeps are not counted",
        "interface.py",
        "    return int(count(storage._cdata)), sys.getrefcount(storage)",
        "    return 0, sys.getrefcount(storage)",
        _ARENA,
        "test_memory_that_a_policy_keeps_is_not_written_again",
    ),
    Mutant(
        "M08c",
        "a storage that a policy keeps is not counted",
        "interface.py",
        "    return int(count(storage._cdata)), sys.getrefcount(storage)",
        "    return int(count(storage._cdata)), 0",
        _ARENA,
        "test_memory_that_a_policy_keeps_is_not_written_again",
    ),
    Mutant(
        "M09",
        "no event is behind direct copies",
        "arena.py",
        "            self._directly += 1\n",
        "",
        _COPIES,
        "test_an_answered_request_is_not_read_again",
    ),
    Mutant(
        "M10",
        "a direct copy ahead does not wait for the model",
        "arena.py",
        "            self._hold(ahead)\n            self._device.copy_in(self.memory[start:end], directly",
        "            self._device.copy_in(self.memory[start:end], directly",
        _COPIES,
        "test_a_direct_copy_ahead_waits_for_the_model_before_it",
    ),
    Mutant(
        "M11",
        "a graph's arena takes new memory",
        "arena.py",
        "        if not self.fixed and (self._own is None or self._own != sharing(self.memory)):",
        "        if self._own is None or self._own != sharing(self.memory):",
        _COPIES,
        "test_a_recorded_policy_uses_the_same_memory_for_ever",
    ),
    Mutant(
        "M12",
        "a client's memory is unmapped before it is unregistered",
        "registration.py",
        "            self._device.unregister(self._address)\n",
        "            import ctypes\n\n"
        "            ctypes.CDLL(None).munmap(ctypes.c_void_p(self._address), ctypes.c_size_t(self._geometry.segment_bytes))\n"
        "            self._device.unregister(self._address)\n",
        _COPIES,
        "test_an_answered_request_is_not_read_again",
    ),
    Mutant(
        "M13",
        "a client's memory is never unregistered",
        "registration.py",
        "            self._device.unregister(self._address)\n",
        "",
        _COPIES,
        "test_an_answered_request_is_not_read_again",
    ),
    Mutant(
        "M14",
        "a direct copy reads the neighbour's slot",
        "registration.py",
        "self._payloads[slot_of(sequence)]",
        "self._payloads[slot_of(sequence) - 1]",
        _COPIES,
        "test_an_answered_request_is_not_read_again",
    ),
    Mutant(
        "M15",
        "a result that waits for room shares the batch's memory",
        "serving.py",
        "(facts, private(tree))",
        "(facts, tree)",
        _COPIES,
        "test_a_result_that_waits_for_room_is_not_overwritten",
    ),
    Mutant(
        "M16",
        "an action is read before its event",
        "serving.py",
        "                self._wait.until(self._flown.finished, look, sleep)",
        "                pass",
        _COPIES,
        "test_two_batches_are_in_two_memories",
    ),
    Mutant(
        "M17",
        "the rest of a batch is not sent",
        "serving.py",
        "                arena.send(ahead=False)\n        except RuntimeError",
        "                pass\n        except RuntimeError",
        _COPIES,
        "test_two_batches_are_in_two_memories",
    ),
    Mutant(
        "M18",
        "the end of a batch is recorded before the action is copied out",
        "serving.py",
        "            return list(self._results.fetch(actions))\n        finally:\n"
        "            # Also if it raised: work that it had launched by then reads the arena.\n            self._flown.computed()\n",
        "            self._flown.computed()\n            return list(self._results.fetch(actions))\n        finally:\n"
        "            pass\n",
        _COPIES,
        "test_two_batches_are_in_two_memories",
    ),
    Mutant(
        "M19",
        "an arena is not done after its batch",
        "serving.py",
        "        self._flown.done()\n        self._words[Counter.CHANNEL] = 0",
        "        self._words[Counter.CHANNEL] = 0",
        _COPIES,
        "test_any_number_of_batches_fit_where_one_does",
    ),
    Mutant(
        "M20",
        "a channel is let go of under its requests",
        "loop.py",
        "        if not self._busy:\n            super()._give_up(state, reason)\n            return",
        "        super()._give_up(state, reason)\n        return",
        _COPIES,
        "test_a_client_that_breaks_its_channel_while_the_device_works_is_let_go_of_after_that",
    ),
    Mutant(
        "M21",
        "what is staged ahead is not sent ahead",
        "loop.py",
        "                self._device_serving.send_ahead()",
        "                pass",
        _COPIES,
        "test_a_request_that_arrives_while_the_device_works_is_copied_meanwhile",
    ),
    Mutant(
        "M22",
        "places are kept when the memory of results grows",
        "readback.py",
        "            self._places.clear()\n            self._end = 0",
        "            self._end = 0",
        _ARENA,
        "test_results_that_grow_are_in_the_new_memory",
    ),
    Mutant(
        "M23",
        "results begin where those of the last batch ended",
        "readback.py",
        '        """Start a batch; all earlier results must have been read."""\n        self._end = 0\n',
        '        """Start a batch; all earlier results must have been read."""\n',
        _ARENA,
        "test_actions_of_any_number_of_batches_use_the_same_memory",
    ),
    Mutant(
        "M24",
        "a graph's arena is not fixed",
        "graphs.py",
        "                arena.fixed = True\n",
        "",
        _COPIES,
        "test_a_recorded_policy_uses_the_same_memory_for_ever",
    ),
    Mutant(
        "M25",
        "a wait ends with the budget for polling",
        "waiting.py",
        "                event.synchronize()\n                break",
        "                break",
        _PARTS,
        "test_without_spinning_every_wait_sleeps",
    ),
    Mutant(
        "M26",
        "nothing is given back after a lack of memory",
        "serving.py",
        "            self._device.give_back()\n        if len(items) > 1",
        "        if len(items) > 1",
        _TROUBLE,
        "test_a_model_that_finds_no_memory_fails_its_request_and_what_is_cached_is_given_back",
    ),
    Mutant(
        "M27",
        "an action of a row that runs alone is read before its event",
        "serving.py",
        "            self._flown.finished.synchronize()\n",
        "",
        _COPIES,
        "test_rows_that_run_alone_are_waited_for",
    ),
    Mutant(
        "M28",
        "both batches are in one arena",
        "serving.py",
        "        self._flying, self._flown = items, arena\n        self._filling ^= 1\n",
        "        self._flying, self._flown = items, arena\n",
        _COPIES,
        "test_two_batches_are_in_two_memories",
    ),
    Mutant(
        "M29",
        "small payloads are copied directly, too",
        "serving.py",
        " and payload_bytes >= threshold",
        "",
        _COPIES,
        "test_small_payloads_are_not_copied_ahead",
    ),
    Mutant(
        "M30",
        "measured memory is unregistered without a wait",
        "tuning.py",
        "            device.synchronize()\n            device.unregister",
        "            device.unregister",
        _PARTS,
        "test_a_measurement_that_fails_unregisters_after_its_copies",
    ),
    Mutant(
        "M32",
        "the warm-up does not wait for its actions",
        "context.py",
        "        self._context.device.synchronize()\n        return found",
        "        return found",
        _COPIES,
        "test_the_warm_up_reads_actions_after_they_have_arrived",
    ),
    Mutant(
        "C01",
        "copies ahead are on the model's stream",
        "cuda.py",
        "        with torch.cuda.stream(self._copies):\n            target.copy_",
        "        if True:\n            target.copy_",
        _CUDA,
        "test_a_copy_ahead_is_on_a_stream_of_its_own",
    ),
    Mutant(
        "C02",
        "every event is on the model's stream",
        "cuda.py",
        "event.record(self._copies if ahead else self._compute)",
        "event.record(self._compute)",
        _GPU,
        "test_bytes_arrive_before_the_model_reads_them",
    ),
    Mutant(
        "C03",
        "a device is never lost",
        "cuda.py",
        "return None if is_out_of_memory(error) else _first_line(error)",
        "return None",
        _CUDA,
        "test_an_error_that_stays_is_a_lost_device",
    ),
    Mutant(
        "C04",
        "copies block",
        "cuda.py",
        "            target.copy_(source, non_blocking=True)\n            return\n",
        "            target.copy_(source)\n            return\n",
        _CUDA,
        "test_copies_do_not_block",
    ),
    Mutant(
        "C05",
        "the error of a refused registration is left",
        "cuda.py",
        "            self._forget_error()\n            raise PinFailed",
        "            raise PinFailed",
        _GPU,
        "test_shared_memory_can_be_registered_copied_from_and_given_up",
    ),
    Mutant(
        "C06",
        "staging is not page-locked",
        "cuda.py",
        "pin_memory=True",
        "pin_memory=False",
        _GPU,
        "test_bytes_arrive_before_the_model_reads_them",
    ),
    Mutant(
        "N01",
        "a request found while the device works is served at once",
        "loop.py",
        "        self._admit_active(time.monotonic_ns())",
        "        self._look_at_active(time.monotonic_ns())",
        _COPIES,
        "test_a_request_that_arrives_while_the_device_works_loses_none_that_is_on_it",
    ),
    Mutant(
        "N02",
        "the stream that a policy left behind stays current",
        "cuda.py",
        "        torch.cuda.set_stream(self._compute)\n",
        "",
        _CUDA,
        "test_a_policy_that_leaves_another_stream_behind_is_waited_for_and_told_once",
    ),
    Mutant(
        "N03",
        "a result of another GPU is taken for this one's",
        "cuda.py",
        "return bool(tensor.device == self.torch_device)",
        "return bool(tensor.is_cuda)",
        _COPIES,
        "test_an_action_on_another_gpu_is_brought_over_first",
    ),
]


def table() -> str:
    """Return the bugs and their tests as Markdown."""
    lines = ["| | bug | in | found by |", "|---|---|---|---|"]
    lines += [
        f"| {each.name} | {each.bug} | `{each.file}` | `{Path(each.tests).name}::{each.test}` |" for each in MUTANTS
    ]
    return "\n".join(lines)


def found(mutant: Mutant, copy: Path) -> bool:
    """Plant the bug in the copy, and return whether its test fails."""
    path = copy / _DEVICE / mutant.file
    text = path.read_text()
    assert text.count(mutant.old) == 1, f"{mutant.name}: its place is there {text.count(mutant.old)} times"
    path.write_text(text.replace(mutant.old, mutant.new))
    try:
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-n",
            "0",
            "-x",
            "-p",
            "no:cacheprovider",
            mutant.tests,
            "-k",
            mutant.test,
        ]
        environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
        ran = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, check=False)
    finally:
        path.write_text(text)
    # 1: tests failed. Others are not found, or did not run.
    assert ran.returncode in (0, 1), ran.stdout[-3000:] + ran.stderr[-1000:]
    return ran.returncode == 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="of some of them")
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    if arguments.table:
        print(table())
        return 0
    chosen = [mutant for mutant in MUTANTS if not arguments.names or mutant.name in arguments.names]
    left = []
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        skipped = shutil.ignore_patterns(
            ".venv*", ".git", "build", "__pycache__", ".mypy_cache", ".ruff_cache", "results"
        )
        shutil.copytree(REPOSITORY, copy, symlinks=True, ignore=skipped)
        for mutant in chosen:
            is_found = found(mutant, copy)
            print(f"{mutant.name} {'found' if is_found else 'NOT FOUND'}: {mutant.bug}", flush=True)
            left += [] if is_found else [mutant.name]
    print(f"{len(chosen) - len(left)} of {len(chosen)} found" + (f"; not: {', '.join(left)}" if left else ""))
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
