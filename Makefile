# `make demo` and `make test` work in an empty clone: they create the environment first.
PYTHON ?= python3
VENV ?= .venv
DEMO_OUT ?= out/demo
DEMO_PROMPTS ?= "red apple" "panda" "blue car"
DEMO_SEED ?= 1
BOUNDS ?= lowest newest
# Processes that run test files side by side; each takes one thread and up to 2 GB.
WORKERS ?= 2
SERVE_PORT ?= 8000
WEB_PORT ?= 7860
# The extras have an environment of their own, so that `make test` shows that the core needs none of them.
EXTRAS_VENV ?= .venv-extras
# Gradio needs a Pillow before 13.
EXTRAS_PILLOW := pillow==12.3.0
EXTRAS_TESTS := tests/demo tests/test_notebook.py tests/test_site.py tests/serve tests/cluster tests/cli/test_serve.py tests/bench/test_batch.py tests/bench/test_prompts.py tests/test_combinations.py

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SIDE_BY_SIDE := --numprocesses $(WORKERS) --dist loadfile
EXTRAS_BIN := $(EXTRAS_VENV)/bin
EXTRAS_STAMP := $(EXTRAS_VENV)/.installed-test-extras
# Idle threads that spin slow small models down many times where other processes run.
export OMP_WAIT_POLICY ?= passive

.DEFAULT_GOAL := help
.PHONY: help venv demo demo-web serve test test-extras test-slow test-versions test-diffusers lint types docs docs-site lines bench train wheel clean

help:
	@echo "make demo           images from 14 of 50 evaluations beside the 50-step ones"
	@echo "make demo-web       a page to try the library in a browser, on this machine"
	@echo "make serve          an OpenAI-compatible server of the model that ships, on this machine"
	@echo "make test           the tests; make test-slow: the exhaustive ones too"
	@echo "make test-extras    the tests of the extras, in an environment with all of them"
	@echo "make test-versions  the core tests with the lowest and the newest supported versions"
	@echo "make test-diffusers DIFFUSERS=path  diffusers' own pipeline tests, with every pipeline enabled"
	@echo "make lint           ruff, format and rules; make types: mypy"
	@echo "make docs           the pages of the methods, the drawings and the tables of compatibility"
	@echo "make docs-site      the documentation site, under out/site"
	@echo "make lines          lines of code by part, in docs/design.md"
	@echo "make bench          cost of a skipped step, and the paper's forecasts and schedules at equal cost"
	@echo "make train          train the model that ships, from scratch"
	@echo "make wheel          a wheel under dist/"

venv: $(STAMP)

# Made again when what is to be installed changes.
$(STAMP): pyproject.toml constraints.txt
	@echo "Installing the package into $(VENV). The first time that takes minutes and gigabytes."
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: $(STAMP)
	$(BIN)/spectrum compare $(DEMO_PROMPTS) --seed $(DEMO_SEED) --methods spectrum -o $(DEMO_OUT)
	@echo "50 evaluations beside 14: $(DEMO_OUT)/grid.png"

# Each command installs its own extra only, beside those that are there; the tests need all of them.
$(EXTRAS_VENV)/.installed-%: pyproject.toml constraints.txt
	@echo "Installing the package with the extra $* into $(EXTRAS_VENV). The first time that takes minutes and gigabytes."
	test -x $(EXTRAS_BIN)/python || $(PYTHON) -m venv $(EXTRAS_VENV)
	sed 's/^pillow==.*/$(EXTRAS_PILLOW)/' constraints.txt > $(EXTRAS_VENV)/constraints.txt
	$(EXTRAS_BIN)/python -m pip install --quiet --disable-pip-version-check -c $(EXTRAS_VENV)/constraints.txt -e '.[$*]'
	touch $@

demo-web: $(EXTRAS_VENV)/.installed-demo
	$(EXTRAS_BIN)/spectrum demo --port $(WEB_PORT)

serve: $(EXTRAS_VENV)/.installed-serve
	$(EXTRAS_BIN)/spectrum serve --port $(SERVE_PORT)

test: $(STAMP)
	$(BIN)/python -m pytest -m "not slow and not gpu" $(SIDE_BY_SIDE)

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m "not gpu" $(SIDE_BY_SIDE)

# A missing extra is a failure here; `make test` skips its tests.
test-extras: $(EXTRAS_STAMP)
	SPECTRUM_EXTRAS=1 $(EXTRAS_BIN)/python -m pytest $(EXTRAS_TESTS)

# In environments of their own, one at a time; they take several gigabytes and are deleted.
test-versions:
	$(PYTHON) .ci/versions.py $(BOUNDS)

# DIFFUSERS is a checkout or a git directory; TESTS names folders of its tests/pipelines, by default all of them.
test-diffusers: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt parameterized requests-mock
	PYTHONPATH=tests $(BIN)/python -m diffusers_suite $(DIFFUSERS) --only $(TESTS)

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(STAMP)
	$(BIN)/mypy

docs: $(STAMP)
	$(BIN)/python docs/method_pages.py
	$(BIN)/python docs/drawings.py
	$(BIN)/python docs/compatibility.py

# Nothing that it loads comes from another host; a warning is an error.
docs-site: $(EXTRAS_VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(EXTRAS_BIN)/python -m mkdocs build --strict

lines:
	$(PYTHON) docs/lines.py

bench: $(STAMP)
	$(BIN)/python -m benchmarks.skip_cost --write docs/benchmarks.md
	$(BIN)/python -m benchmarks.field default-14 default-10 --write docs/results

train: $(STAMP)
	$(BIN)/python -m training.tiny_flux all

wheel: $(STAMP)
	rm -rf dist
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps -c constraints.txt -w dist .
	@ls dist

clean:
	rm -rf build dist out .pytest_cache .hypothesis .mypy_cache .ruff_cache $(VENV) $(EXTRAS_VENV)
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
