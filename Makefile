# make demo: train, evaluate and describe the embedded model.  make test: the whole suite.  make check: style and types.
# make targets: train the embedded teacher, and write the targets that recipes/tiny.yaml learns.

PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo targets test check clean

demo: $(VENV)/.installed
	$(BIN)/accelerate launch sft/run.py recipes/tiny.yaml --overwrite
	$(BIN)/accelerate launch eval/run.py runs/tiny
	$(BIN)/python -m publish.run runs/tiny

targets: $(VENV)/.installed
	$(BIN)/accelerate launch sft/run.py recipes/tiny.yaml --data.targets null --output_dir runs/teacher --overwrite
	$(BIN)/accelerate launch eval/distil.py runs/teacher --output recipes/tiny-targets.jsonl

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest

check: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

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
