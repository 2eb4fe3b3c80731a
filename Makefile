# Every target makes what it needs: a virtual environment in .venv, with this checkout installed in it.
PYTHON ?= python3
VENV := .venv
BENCH_VENV := .venv-bench
RAY_VENV := .venv-ray
LEROBOT_VENV := .venv-lerobot
BIN := $(VENV)/bin
# The version that the tests run with; a plain "torch" would also fetch the CUDA libraries.
TORCH ?= torch==2.13.0

TESTS := $(BIN)/python -m pytest --dist loadfile

# Where the native core cannot be built (and was not), everything runs in pure Python. A later compiler builds it.
CORE := $(wildcard shmserve/_core*.so)
COMPILER := $(shell $(PYTHON) -c "import os, shutil, sysconfig as s; \
	found = shutil.which((os.environ.get('CC') or s.get_config_var('CC')).split()[0]); \
	print(found if found and os.path.exists(s.get_path('include') + '/Python.h') else '')")
ifeq ($(SHMSERVE_PURE)$(CORE)$(COMPILER),)
export SHMSERVE_PURE := 1
$(info No C compiler or no Python headers (apt-get install gcc python3-dev): SHMSERVE_PURE=1, shmserve runs in pure Python.)
endif
NO_CORE := $(if $(SHMSERVE_PURE)$(CORE),,$(VENV)/no-core)

.PHONY: help unit test run-tests test-all coverage check lint man demo bench bench-check fuzz chaos growth sanitize clean
.PHONY: test-gpu bench-gpu sanitize-gpu run-on-gpu test-lerobot test-ray libshmserve install-libshmserve
.DEFAULT_GOAL := help

help:  ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# It never exists: an environment that needs it is made again.
$(VENV)/no-core:

# The native core (native/core/, native/python/) is built as part of the installation.
$(VENV)/installed: pyproject.toml setup.py $(wildcard native/*/*) $(NO_CORE)
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check $(TORCH)
	@$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	@# Without what it depends on: it asks for numpy 1, and its client half needs only what [dev] brings.
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps openpi-client
	@touch $@

lint: $(VENV)/installed  ## run the static checks alone: ruff, mypy, import-linter, the prose
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/mypy
	@kept=$$($(BIN)/lint-imports --no-cache --no-logo) || { echo "$$kept"; exit 1; }
	@$(BIN)/python -m tests.support.plain_english

unit: $(VENV)/installed  ## run the tests that start no process (a minute)
	@$(TESTS) --numprocesses 2 tests/unit

# The checks beside the tests: mypy alone would take a processor for a minute and leave the others idle.
test: $(VENV)/installed  ## run all checks and tests that a change must pass; CI runs this
	@$(MAKE) --no-print-directory --jobs 2 lint run-tests

check: test  ## run make test

# The second passes first: they are short. Three workers on two cores: many tests wait for a daemon that loads torch.
run-tests: $(VENV)/installed
	@SHMSERVE_TEST_TRANSPORT=sealed $(TESTS) -m "both_ways and not long" tests/integration/requests
	@SHMSERVE_PURE=1 $(TESTS) -m "both_ways and not long" tests/integration/requests
	@$(TESTS) --numprocesses 3

# The number of updates under load; from 1,000 on also a kill at every step and every refused package, with figures.
UPDATES ?= 1000
test-all: $(VENV)/installed  ## run every test in its long form, the second passes and the coverage (two hours)
	@$(MAKE) --no-print-directory lint
	@SHMSERVE_TEST_UPDATES=$(UPDATES) $(TESTS) --numprocesses 2 -m "not ray"
	@SHMSERVE_TEST_TRANSPORT=sealed $(TESTS) --numprocesses 2 -m "sealed_too"
	@SHMSERVE_PURE=1 $(TESTS) --numprocesses 2 -m "pure_too"
	@$(MAKE) --no-print-directory coverage

coverage: $(VENV)/installed  ## print which part of shmserve the tests of make test run, in all processes
	@rm -f .coverage .coverage.*
	@$(BIN)/coverage run -m pytest --dist loadfile --numprocesses 2
	@$(BIN)/coverage combine --quiet
	@$(BIN)/coverage report

man: $(VENV)/installed  ## write the man pages from the commands' own help, docs/c-reference.md from the headers
	@$(BIN)/python man/generate.py
	@$(BIN)/python man/c_reference.py

demo: $(VENV)/installed  ## start the daemon with the example policy and let a robot balance a pole through it
	@$(BIN)/python examples/cartpole/demo.py

# Its own environment: the peers' packages are many, and no test needs them.
$(BENCH_VENV)/installed: pyproject.toml setup.py $(wildcard native/*/*) $(NO_CORE)
	@$(PYTHON) -m venv $(BENCH_VENV)
	@$(BENCH_VENV)/bin/pip install --quiet --disable-pip-version-check $(TORCH)
	@$(BENCH_VENV)/bin/pip install --quiet --disable-pip-version-check -e '.[bench]'
	@touch $@

# make bench BENCH="--seconds 10" for the long form.
bench: $(BENCH_VENV)/installed  ## measure beside every other way to ask a policy on this host (forty minutes)
	@$(BENCH_VENV)/bin/python -m bench.run --name reference --report $(BENCH)

bench-check: $(BENCH_VENV)/installed  ## compare the ratios of a short run with the stored ones
	@$(BENCH_VENV)/bin/python -m bench.check $(BENCH)

# All with whatever Python here has a torch that finds a GPU; without one they say so. Several of them in one call of make all
# run, and the worst result counts. RESULTS=folder for logs and figures; TEST="serving -k batch" for a part of the tests
# (device, serving, service); BENCH="--seconds 10" for the long form; REHEARSE=--rehearse for the late GPU of tests/gpu/.
test-gpu: run-on-gpu  ## run the tests that need a GPU, and those around them; installs nothing
bench-gpu: run-on-gpu  ## measure on a GPU; see docs/gpu.md
sanitize-gpu: run-on-gpu  ## run tests on a GPU with torch's checker of streams and CUDA's checker of memory

run-on-gpu:
	@RESULTS="$(RESULTS)" $(PYTHON) tests/gpu/on_gpu.py $(REHEARSE) --test "$(TEST)" --bench "$(BENCH)" \
		$(patsubst %-gpu,%,$(filter test-gpu bench-gpu sanitize-gpu,$(MAKECMDGOALS)))

# Its own environment: Ray has 1 GB of packages. Without a network, because Ray listens on every address that it finds; in
# a namespace of processes, so that nothing of it is left; with its token in a home of its own.
$(RAY_VENV)/installed: pyproject.toml setup.py $(wildcard native/*/*) $(NO_CORE)
	@$(PYTHON) -m venv $(RAY_VENV)
	@$(RAY_VENV)/bin/pip install --quiet --disable-pip-version-check $(TORCH)
	@$(RAY_VENV)/bin/pip install --quiet --disable-pip-version-check -e '.[dev,ray]'
	@touch $@

test-ray: $(RAY_VENV)/installed  ## run the tests with a real Ray cluster on this machine (five minutes)
	@HOME=$$(mktemp -d) unshare $(if $(filter 0,$(shell id -u)),,--map-root-user) --net --pid --fork --kill-child --mount-proc \
		sh -c 'ip link set lo up && exec $(RAY_VENV)/bin/python -m pytest -m ray -p no:cacheprovider tests/ray $(TEST)'

# With a Python that LeRobot accepts; its torch is older than the one of the other tests. Afterwards without the package
# `tests` that draccus brings, before which the folder of this checkout would lose.
$(LEROBOT_VENV)/installed: pyproject.toml setup.py $(wildcard native/*/*)
	@python=$$($(PYTHON) tests/lerobot/find_python.py) && $$python -m venv $(LEROBOT_VENV)
	@$(LEROBOT_VENV)/bin/pip install --quiet --disable-pip-version-check -e '.[lerobot-test]'
	@rm -rf $(LEROBOT_VENV)/lib/python3.*/site-packages/tests
	@touch $@

# make test-lerobot TEST="-k smolvla" for a part.
test-lerobot: $(LEROBOT_VENV)/installed  ## compare served LeRobot checkpoints with LeRobot itself; installs LeRobot (5 GB)
	@$(LEROBOT_VENV)/bin/python -m pytest -m "long or not long" tests/lerobot $(TEST)

# In the same environment: atheris runs the code that the tests run.
$(VENV)/fuzz: $(VENV)/installed
	@$(BIN)/pip install --quiet --disable-pip-version-check -e '.[fuzz]'
	@touch $@

fuzz: $(VENV)/fuzz  ## fuzz every parser of untrusted input, coverage-guided; FUZZ="--inputs 40000000" for long
	@$(BIN)/python -m fuzz.core_fuzz
	@$(BIN)/python -m fuzz.lib_fuzz
	@$(BIN)/python -m fuzz.guided $(FUZZ)

# With Debian's gcc; what it builds stays out of the checkout.
sanitize: $(VENV)/installed  ## run the tests and the fuzzing of the C code with address and undefined-behaviour checks
	@$(BIN)/python tests/support/sanitized.py

# make chaos CHAOS="--transport sealed --only client-kills --client-kills 100" for a part.
chaos: $(VENV)/installed  ## kill, stop, starve and storm clients, engines and the supervisor (an hour)
	@$(BIN)/python -m chaos.run $(CHAOS)

growth: $(VENV)/installed  ## 10,000 clients and a million requests; nothing may grow
	@$(BIN)/python -m chaos.run --only attachments --attachments 10000 --only requests --requests 1000000 $(CHAOS)

libshmserve:  ## build the C library (build/libshmserve/); needs a C compiler alone
	@$(MAKE) --no-print-directory -f native/libshmserve.mk

# make install-libshmserve PREFIX=$HOME/.local for one user.
install-libshmserve:  ## install the C library, its header, and what pkg-config and CMake find it by
	@$(MAKE) --no-print-directory -f native/libshmserve.mk install

clean:  ## remove what these made
	rm -rf $(VENV) $(BENCH_VENV) $(LEROBOT_VENV) $(RAY_VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage .coverage.*
