# `make` sets everything up in .venv, with pip alone. The other targets set up first where that is needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: all setup demo test lint house check torture fuzz parity mteb coverage mutants matrix zoo sets clean
all: setup

setup: $(VENV)/.ready

# constraints.txt holds the versions that the numbers were measured with; remove -c to take the newest ones.
$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

demo: setup
	$(BIN)/clipbench eval --model digits-clip-lite --task quickstart --save-heatmaps 8
	$(BIN)/clipbench site --out site

test: setup lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# the floor plan of the package in figures, beside what each shall be
house:
	$(PYTHON) tests/house.py

check: setup
	$(BIN)/clipbench check
	$(BIN)/clipbench report --check

torture: setup
	OMP_NUM_THREADS=1 $(BIN)/python tests/torture.py
# how often the intervals hold the truth, with more trials than the tests have; minutes
coverage: setup
	OMP_NUM_THREADS=1 PYTHONPATH=. $(BIN)/python tests/covering.py

# whether some test notices small changes of the code that makes numbers and verdicts; MUTANTS="" tries all, for many hours
MUTANTS ?= --sample 3
mutants: setup
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev,mutants]'
	OMP_NUM_THREADS=1 PYTHONPATH=. $(BIN)/python tests/mutants.py $(MUTANTS)

# install, demo and smoke test on the lowest versions on Python 3.11 and the newest on 3.13 and 3.14, 5 to 8 GB at a
# time; writes docs/matrix.md. MATRIX="--row newest-3.14 --python PATH" tries one
MATRIX ?=
matrix:
	$(PYTHON) tests/matrix.py $(MATRIX)

# every architecture of open_clip, made small, through open_clip and through clipbench; writes docs/models.md; ten minutes.
# ZOO="RN50 ViT-B-32" tries these alone
ZOO ?=
sets:
	PYTHONPATH=. $(PYTHON) tests/sets.py

zoo: setup
	OMP_NUM_THREADS=1 PYTHONPATH=.:tests $(BIN)/python -m zoo $(ZOO)

parity: setup
	PYTHONPATH=tests $(BIN)/python -m parity

# `clipbench.as_mteb` under mteb's image tasks, in an environment of its own over this one; a minute
mteb: setup
	PYTHONPATH=tests $(BIN)/python -m parity.with_mteb

# 50,000 changed files of each kind that is read; on two cores about an hour
fuzz: setup
	$(BIN)/python tests/fuzz.py

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .import_linter_cache .pytest_cache build dist *.egg-info
