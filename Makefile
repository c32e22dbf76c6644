# make demo        environment, install, and the main job on the embedded data and model
# make test        environment, install, and the fast tests
# make test-slow   kills, flips, full crosses
# make check       ruff and mypy
# make docs        the documentation as a site, in site/

PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin
# one thread a worker: two pytest workers share the cores, and what one has left goes to the other
PYTEST := OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(RUN)/python -m pytest -n 2 --dist worksteal

.PHONY: demo test test-slow check docs env clean

env: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: env
	$(RUN)/python -m benchmarks.demo

test: env
	$(PYTEST) -m "not slow"

test-slow: env
	$(PYTEST) -m slow --timeout 1800

check: env
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/mypy

docs: env
	PATH="$(abspath $(RUN)):$$PATH" RUN_NOTEBOOKS=true NO_MKDOCS_2_WARNING=1 $(RUN)/python -m mkdocs build

clean:
	rm -rf $(VENV) build site *.egg-info .pytest_cache .mypy_cache .ruff_cache demo
