# make demo: train, evaluate and describe the embedded model.   make targets: make again what it learns.
# make test: the whole suite.   make test-fast: what answers in a minute and a half.   make check: style and types.

PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
TEACHER = --data.targets null --data.swaps 1.5 --data.inserts 1.2

.PHONY: demo targets test test-fast check clean

demo: $(VENV)/.installed
	$(BIN)/accelerate launch sft/run.py recipes/tiny.yaml --overwrite
	$(BIN)/accelerate launch eval/run.py runs/tiny
	$(BIN)/python -m publish.run runs/tiny

# The embedded recipe's targets, made again: a teacher on people's rewrites, then what it writes for the training sentences.
targets: $(VENV)/.installed
	$(BIN)/accelerate launch sft/run.py recipes/tiny.yaml $(TEACHER) --output_dir runs/teacher --overwrite
	$(BIN)/accelerate launch eval/distil.py runs/teacher --output recipes/tiny-targets.jsonl

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n 2 --dist worksteal

test-fast: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

check: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Made anew when the requirements change; an installation that was cut off leaves no stamp and is done again.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test]"
	touch $@

clean:
	rm -rf $(VENV) runs
