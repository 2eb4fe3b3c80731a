# Every target makes what it needs: a virtual environment in .venv, with this checkout installed in it.
PYTHON ?= python3
VENV := .venv
BENCH_VENV := .venv-bench
BIN := $(VENV)/bin
# The version that the tests run with; a plain "torch" would also fetch the CUDA libraries.
TORCH ?= torch==2.13.0

.PHONY: man demo test run-tests test-long test-sealed test-updates check lint bench bench-check fuzz chaos growth sanitize clean test-gpu bench-gpu
.DEFAULT_GOAL := help

help:
	@echo "make demo   start the daemon with the example policy and let a robot balance a pole through it"
	@echo "make test   all checks and tests; make check is the same"
	@echo "make test-updates  the long form of the tests of updates: 1,000 under load, a kill at every step (half an hour)"
	@echo "make test-long  the tests that make test leaves out for their time"
	@echo "make test-sealed  all tests again, their daemons by transport sealed"
	@echo "make lint   the static checks alone"
	@echo "make bench  measure, beside every other way to ask a policy on this host; docs/benchmarks.md (twenty minutes)"
	@echo "make bench-check  compare the ratios of a short run with those that are kept"
	@echo "make fuzz   arbitrary bytes for every reader of foreign bytes, coverage-guided; FUZZ=\"--inputs 40000000\" for long"
	@echo "make chaos  kill, stop, starve and storm clients, engines and the supervisor; account for every request (an hour)"
	@echo "make growth 10,000 clients and a million requests; nothing may grow"
	@echo "make sanitize  the tests and the fuzzing of the native core, with gcc's checks of addresses and undefined behaviour"
	@echo "make man    the man pages, from the commands' own help"
	@echo "make test-gpu   the tests that need a GPU, and those around them; installs nothing"
	@echo "make bench-gpu  measure on a GPU; docs/gpu.md"
	@echo "make clean  remove what these made"

# The native core (native/python/) is built as part of the installation.
$(VENV)/installed: pyproject.toml setup.py $(wildcard native/python/*)
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check $(TORCH)
	@$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	@# Without what it depends on: it asks for numpy 1, and its client half needs only what [dev] brings.
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps openpi-client
	@touch $@

man: $(VENV)/installed
	@$(BIN)/python man/generate.py

demo: $(VENV)/installed
	@$(BIN)/python examples/cartpole/demo.py

lint: $(VENV)/installed
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache > /tmp/lint-imports.$$$$ 2>&1 || { cat /tmp/lint-imports.$$$$; rm -f /tmp/lint-imports.$$$$; exit 1; }; rm -f /tmp/lint-imports.$$$$

check: test

# The checks beside the tests: mypy alone would take a processor for a minute and leave the others idle.
test: $(VENV)/installed
	@$(MAKE) --no-print-directory --jobs 2 lint run-tests

# Three workers on two cores: many tests wait for a daemon that loads torch. A file's tests share daemons.
run-tests: $(VENV)/installed
	@SHMSERVE_TEST_TRANSPORT=sealed $(BIN)/python -m pytest --numprocesses 2 --dist loadfile $(SEALED_AS_WELL)
	@SHMSERVE_PURE=1 $(BIN)/python -m pytest --numprocesses 3 --dist loadfile $(PURE_AS_WELL)
	@$(BIN)/python -m pytest --numprocesses 3 --dist loadfile

# Those that reach the native core (native/python/), again with the Python that replaces it where there is no compiler.
PURE_AS_WELL := tests/unit/core/test_codec.py tests/unit/core/test_ring.py tests/integration/requests/test_pipelining.py tests/integration/requests/test_growing.py \
	tests/integration/requests/test_exact_values.py tests/unit/engine/loop/test_engine_turns.py tests/unit/native/test_native_leaks.py shmserve/codec.py shmserve/counter_poller.py

# The whole suite again, its daemons by transport sealed; `make test` does so with the files at the heart of the request path.
SEALED_AS_WELL := tests/integration/requests/test_pipelining.py tests/integration/requests/test_growing.py
test-sealed: $(VENV)/installed
	@SHMSERVE_TEST_TRANSPORT=sealed $(BIN)/python -m pytest --numprocesses 3 --dist loadfile

# The long form of the tests of updates: a thousand of them under load, a kill at every step, every bad package.
UPDATES ?= 1000
test-updates: $(VENV)/installed
	@SHMSERVE_TEST_UPDATES=$(UPDATES) $(BIN)/python -m pytest -m "long or not long" tests/integration/updates tests/faults/test_update_*.py tests/faults/test_store_*.py \
		tests/unit/daemon/store

# The tests that `make test` leaves out so that it takes less than a quarter of an hour; they take as long again.
test-long: $(VENV)/installed
	@$(BIN)/python -m pytest -m long --numprocesses 2 --dist loadfile

# Its own environment: the peers' packages are many, and no test needs them.
$(BENCH_VENV)/installed: pyproject.toml setup.py $(wildcard native/python/*)
	@$(PYTHON) -m venv $(BENCH_VENV)
	@$(BENCH_VENV)/bin/pip install --quiet --disable-pip-version-check $(TORCH)
	@$(BENCH_VENV)/bin/pip install --quiet --disable-pip-version-check -e '.[bench]'
	@touch $@

# make bench BENCH="--seconds 10" for the long form.
bench: $(BENCH_VENV)/installed
	@$(BENCH_VENV)/bin/python -m bench.run --name reference --report $(BENCH)

bench-check: $(BENCH_VENV)/installed
	@$(BENCH_VENV)/bin/python -m bench.check $(BENCH)

# Both with whatever Python here has a torch that finds a GPU; without one they say so.
test-gpu:
	@$(PYTHON) tests/gpu/on_gpu.py test $(TEST)

# make bench-gpu BENCH="--seconds 10" for the long form.
bench-gpu:
	@$(PYTHON) tests/gpu/on_gpu.py bench $(BENCH)

# In the same environment: atheris runs the code that the tests run.
$(VENV)/fuzz: $(VENV)/installed
	@$(BIN)/pip install --quiet --disable-pip-version-check -e '.[fuzz]'
	@touch $@

fuzz: $(VENV)/fuzz
	@$(BIN)/python -m fuzz.guided $(FUZZ)

# With Debian's gcc; what it builds stays out of the checkout.
sanitize: $(VENV)/installed
	@$(BIN)/python tests/support/sanitized.py

# make chaos CHAOS="--transport sealed --only client-kills --client-kills 100" for a part.
chaos: $(VENV)/installed
	@$(BIN)/python -m chaos.run $(CHAOS)

growth: $(VENV)/installed
	@$(BIN)/python -m chaos.run --only attachments --attachments 10000 --only requests --requests 1000000 $(CHAOS)

clean:
	rm -rf $(VENV) $(BENCH_VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
