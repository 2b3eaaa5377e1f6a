# make demo: set everything up, show what adapters do, and train one on the starter, offline.
# make test: set everything up and run all tests. make check: linters and types.
# make docs: the site, into site/, with every link checked.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CORES := $(shell nproc 2>/dev/null || echo 2)
export TOKENIZERS_PARALLELISM := false
# OMP_WAIT_POLICY is not here: recipes and tests set it themselves (adapters_hub/openmp.py).
LAUNCH := $(BIN)/accelerate launch --quiet --num_processes 1 --num_machines 1 --mixed_precision no \
	--dynamo_backend no --num_cpu_threads_per_process $(CORES)

.PHONY: demo test check docs format build clean

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: $(VENV)/installed
	$(BIN)/adapters-hub demo
	$(LAUNCH) recipes/lora_domain.py --steps 60 --eval-every 20

test: $(VENV)/installed
	$(BIN)/python -m pytest --numprocesses logical --dist loadfile

check: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(VENV)/installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

format: $(VENV)/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

build: $(VENV)/installed
	$(BIN)/python -m build --wheel

clean:
	rm -rf $(VENV) build dist runs site .pytest_cache .mypy_cache .ruff_cache .hypothesis
