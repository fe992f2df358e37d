# Every command sets up all that it needs: a virtual environment beside the code, with the versions in constraints.txt.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11 python3.10; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null && echo $$p && break; done)
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: demo test test-clients test-oldest quick coverage check docs answers bench dist clean

# yeast lies inside a package that needs Python 3.11; without it, two overlaid digits take its place
demo: $(VENV)/installed
	@echo "24 training runs: 2 to 3 minutes on 2 cores, 9 MB in runs/demo"
	$(BIN)/equipoise compare pinn $$($(BIN)/python -c 'import river.datasets' 2>/dev/null && echo yeast || echo multimnist) \
		--methods "equal,inverse_initial_loss,gradnorm,gradnorm_closed_form(alpha=0)" --seeds 3 \
		--runs runs/demo --report runs/demo/report.html

test: $(VENV)/installed
	$(BIN)/python -m pytest -n 2

# and those inside chemprop, PINA, torch-rechub and with TensorBoard, W&B and MLflow, which take 500 MB on disk
test-clients: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[lab,data,clients]"
	$(BIN)/python -m pytest -n 2 tests/clients tests/integrations tests/test_docs.py src/equipoise/integrations

# the tests that need no other process, no compiler and no trainer; of those with several parameters, each value once
quick: $(VENV)/installed
	$(BIN)/python -m pytest -n 2 -m "not slow and not thorough"

# the core with the oldest PyTorch that it works with, in an environment of its own: 6 GB on Linux, as its wheel brings CUDA
test-oldest: $(VENV)-oldest/installed
	$(VENV)-oldest/bin/python -m pytest -n 2 \
		$(addprefix tests/,engine balancer methods combine cases check setups) tests/test_hierarchy.py tests/test_hierarchy_setups.py

# the quick tests with all combinations, and which lines and branches of the core they reach
coverage: $(VENV)/installed
	$(BIN)/python -m pytest -n 2 -m "not slow" --cov --cov-report=term-missing:skip-covered --cov-fail-under=90

check: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# the site, in build/docs; needs Python 3.11, and a warning is an error
docs: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[lab,data,docs]"
	$(BIN)/python -m sphinx -W --keep-going --quiet docs build/docs

# the pages that answer the reviewers of the paper, from the committed records of the studies
answers: $(VENV)/installed
	$(BIN)/python -m docs.generate.answers

# for hours, on a machine with nothing else to do
bench: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[lab,data,bench]"
	$(BIN)/equipoise bench -o results/cost
	$(BIN)/python -m docs.generate.cost measure

# what a release uploads
dist: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt hatchling
	$(BIN)/python -m hatchling build -d dist

$(VENV)/installed: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.10 or newer is needed"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[lab,data,dev]"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps MoleculeACE==3.0.0  # its files alone
	@touch $@

$(VENV)-oldest/installed: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.10 or newer is needed"; exit 1; }
	$(PYTHON) -m venv $(VENV)-oldest
	grep -vE '^(torch|sympy|triton|nvidia-.*)==' constraints.txt > $(VENV)-oldest/constraints.txt
	$(VENV)-oldest/bin/python -m pip install --quiet --disable-pip-version-check -c $(VENV)-oldest/constraints.txt \
		"torch==2.6.0" -e ".[lab,data,dev]"
	@touch $@

clean:
	rm -rf $(VENV) $(VENV)-oldest runs dist build
