# Every target makes what it needs: a virtual environment in .venv, with this checkout installed in it.
PYTHON ?= python3
VENV := .venv
BENCH_VENV := .venv-bench
RAY_VENV := .venv-ray
LEROBOT_VENV := .venv-lerobot
DOCS_VENV := .venv-docs
RELEASE_VENV := .venv-release
BIN := $(VENV)/bin
# The version that the tests run with; a plain "torch" would also fetch the CUDA libraries.
TORCH ?= torch==2.13.0

# Each worker imports all files of tests: what one of them has compiled is kept, whatever the variable says. In the order of
# their folders, so that the quick ones of tests/unit come last and no worker is long alone.
TESTS := PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest --dist loadfile --no-loadscope-reorder

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

.PHONY: help unit test run-tests run-sealed-tests run-pure-tests test-all coverage check lint man docs demo bench bench-check fuzz chaos growth sanitize clean
.PHONY: test-gpu bench-gpu sanitize-gpu run-on-gpu test-lerobot test-ray chaos-ray bench-ray libshmserve install-libshmserve
.PHONY: lock wheels sbom release try-release reproducible
.DEFAULT_GOAL := help

help:  ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# It never exists: an environment that needs it is made again.
$(VENV)/no-core:

# The packages have 8,000 files, of which the tests import 2,000: these alone are compiled, as they are imported.
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --no-compile

# $(call locked,FILE,ARGUMENTS): install the versions and hashes of release/requirements/FILE. An index may lack one of them:
# then, unless LOCKED=1, pip chooses by ARGUMENTS.
LOCKS := release/requirements
locked = $(PIP) --require-hashes --no-deps -r $(LOCKS)/$(1) $(if $(LOCKED),,|| { \
	echo "$(LOCKS)/$(1) cannot be installed here: pip chooses other versions. LOCKED=1 makes this an error."; $(PIP) $(2); })

# The native core (native/core/, native/python/) is built as part of the installation. PyTorch has no hash: machines have
# different builds of it. openpi-client is alone, because it asks for numpy 1.
$(VENV)/installed: pyproject.toml setup.py $(wildcard native/*/* $(LOCKS)/*.txt) $(NO_CORE)
	@$(PYTHON) -m venv $(VENV)
	@$(call locked,dev.txt,$(TORCH))
	@$(PIP) $(TORCH)
	@$(PIP) $(if $(LOCKED),--no-deps --no-build-isolation) -e '.[dev]'
	@$(call locked,openpi.txt,--no-deps openpi-client)
	@PYTHONDONTWRITEBYTECODE= $(BIN)/python -c "import torch"  # once, before several processes do
	@touch $@

lint: $(VENV)/installed  ## run the static checks alone: ruff, mypy, import-linter, the prose
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/mypy
	@kept=$$($(BIN)/lint-imports --no-cache --no-logo) || { echo "$$kept"; exit 1; }
	@$(BIN)/python -m tests.support.plain_english

unit: $(VENV)/installed  ## run the tests that start no process (a minute)
	@$(TESTS) --numprocesses 2 tests/unit

# All tests, and beside them the checks and then the second passes: each of these would leave processors idle.
test: $(VENV)/installed  ## run all checks and tests that a change must pass; CI runs this
	@$(MAKE) --no-print-directory --jobs 2 run-tests lint run-sealed-tests run-pure-tests

check: test  ## run make test

# Four workers on two cores: many tests wait for a daemon that loads torch.
run-tests: $(VENV)/installed
	@$(TESTS) --numprocesses 4

# Of these files alone: to collect the tests of the others takes longer than to run these.
BOTH_WAYS = $(shell grep -rl --include='*.py' pytest.mark.both_ways tests/integration)

run-sealed-tests: $(VENV)/installed
	@SHMSERVE_TEST_TRANSPORT=sealed $(TESTS) -m "both_ways and not long" $(BOTH_WAYS)

run-pure-tests: $(VENV)/installed
	@SHMSERVE_PURE=1 $(TESTS) -m "both_ways and not long" $(BOTH_WAYS)

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

man: $(VENV)/installed  ## write the man pages from the commands' own help, docs/reference/c-reference.md from the headers
	@$(BIN)/python man/generate.py
	@$(BIN)/python man/c_reference.py

# Its own environment, without torch and without the native core: the programs are asked for their help alone.
$(DOCS_VENV)/installed: pyproject.toml
	@$(PYTHON) -m venv $(DOCS_VENV)
	@SHMSERVE_PURE=1 $(DOCS_VENV)/bin/pip install --quiet --disable-pip-version-check -e '.[docs]'
	@touch $@

docs: $(DOCS_VENV)/installed  ## build the site in site/; a dead link or anchor fails
	@SHMSERVE_PURE=1 NO_MKDOCS_2_WARNING=1 $(DOCS_VENV)/bin/mkdocs build --strict --quiet

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
bench-gpu: run-on-gpu  ## measure on a GPU; see docs/explanation/gpu.md
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

IN_RAY_VENV = HOME=$$(mktemp -d) unshare $(if $(filter 0,$(shell id -u)),,--map-root-user) --net --pid --fork --kill-child --mount-proc \
	sh -c 'ip link set lo up && exec $(RAY_VENV)/bin/python "$$@"' -

test-ray: $(RAY_VENV)/installed  ## run the tests with a real Ray cluster on this machine (five minutes)
	@$(IN_RAY_VENV) -m pytest -m ray -p no:cacheprovider -o faulthandler_timeout=600 tests/ray $(TEST)

# make chaos-ray CHAOS="--minutes 2 --losses 4 --kills 2 --switches 1" for a short one.
chaos-ray: $(RAY_VENV)/installed  ## let a robot ask through lost links, killed replicas and updates with a real Ray (twelve minutes)
	@$(IN_RAY_VENV) -m chaos.remote_links --ray $(CHAOS)

bench-ray: $(RAY_VENV)/installed  ## measure what a link adds, also with a real Ray on this machine (two minutes)
	@$(IN_RAY_VENV) -m bench.scale.remote_latency --ray $(BENCH)

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

# Everything that builds a release, by its hashes.
$(RELEASE_VENV)/installed: $(LOCKS)/release.txt
	@$(PYTHON) -m venv $(RELEASE_VENV)
	@$(RELEASE_VENV)/bin/pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r $(LOCKS)/release.txt
	@touch $@

lock: $(RELEASE_VENV)/installed  ## resolve versions and hashes of all packages anew (release/requirements/)
	@PATH="$(abspath $(RELEASE_VENV)/bin):$$PATH" $(RELEASE_VENV)/bin/python -m release.lock '$(TORCH)'

# make wheels WHEELS="--python 3.11 --machine x86_64" for a part.
wheels: $(RELEASE_VENV)/installed  ## build the source distribution and manylinux wheels of the commit into dist/
	@$(RELEASE_VENV)/bin/python -m release.wheels $(WHEELS)

sbom: $(RELEASE_VENV)/installed  ## write the software bill of materials (CycloneDX) into dist/
	@$(RELEASE_VENV)/bin/python -m release.sbom dist

release: wheels  ## make wheels, make sbom, and the checksums of both
	@$(MAKE) --no-print-directory sbom
	@cd dist && sha256sum shmserve-* > SHA256SUMS && echo "dist/SHA256SUMS: $$(wc -l < SHA256SUMS) files"

# make try-release TRY="--emulated FOLDER" for aarch64; see docs/development/releasing.md.
try-release: $(RELEASE_VENV)/installed  ## install what is in dist/ into bare environments and ask it
	@$(RELEASE_VENV)/bin/python -m release.trial dist --torch '$(TORCH)' $(TRY)

reproducible: $(RELEASE_VENV)/installed  ## build twice, in different folders, and compare the bytes
	@$(RELEASE_VENV)/bin/python -m release.reproduce $(WHEELS)

clean:  ## remove what these made
	rm -rf $(VENV) $(BENCH_VENV) $(LEROBOT_VENV) $(RAY_VENV) $(DOCS_VENV) $(RELEASE_VENV) site build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage .coverage.*
