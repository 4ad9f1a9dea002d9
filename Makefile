PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := runs/demo
# One thread per process, as many processes as cores.
WHICH := -m "not slow and not assets and not soak" -q --dist loadfile
FAST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(WHICH) -n auto

.PHONY: help setup demo test check slow soak oldest docs notebooks clean

help:
	@echo "make setup   create $(VENV) with everything installed"
	@echo "make demo    train on the embedded data set on the CPU, then sample, evaluate and show the attention"
	@echo "make test    run the fast tests"
	@echo "make check   check format, lint, types and package levels, then run the fast tests"
	@echo "make slow    run the tests marked slow or assets (SAGAN_ASSETS is the folder with the assets)"
	@echo "make soak    run the longest tests"
	@echo "make oldest  run the fast tests and the compile tests with the oldest versions that pyproject.toml allows"
	@echo "make notebooks  run docs/notebooks and keep their outputs"
	@echo "make docs    build the documentation as a web site, site/; a broken link or reference is an error"

setup: $(VENV)/ready

$(VENV)/ready: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --upgrade pip
	$(BIN)/python -m pip install --editable ".[dev]"
	touch $@

$(VENV)-oldest/ready: pyproject.toml tests/oldest.txt
	test -x $(VENV)-oldest/bin/python || $(PYTHON) -m venv $(VENV)-oldest
	$(VENV)-oldest/bin/python -m pip install --quiet --editable ".[dev]" --constraint tests/oldest.txt
	touch $@

demo: setup
	$(BIN)/sagan train shapes32 --out $(DEMO)
	$(BIN)/sagan sample $(DEMO) --out $(DEMO)/images --num 64 --grid
	$(BIN)/sagan evaluate $(DEMO) --num 1000
	$(BIN)/sagan attend $(DEMO) --out $(DEMO)/attention --seeds 0-7 --html
	@echo
	@echo "Results: $(DEMO)/images/grid.png           samples"
	@echo "         $(DEMO)/attention/attention.png   what the generator attends to"
	@echo "         $(DEMO)/attention/attention.html  the same, interactive"
	@echo "         $(DEMO)/samples/                  samples during training"

test: setup
	$(FAST)

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(FAST)

slow: setup
	$(BIN)/python -m pytest -m "(slow or assets) and not soak" -q

soak: setup
	$(BIN)/python -m pytest -m soak -q

oldest: $(VENV)-oldest/ready
	OMP_NUM_THREADS=1 $(VENV)-oldest/bin/python -m pytest $(WHICH) -n auto
	OMP_NUM_THREADS=1 $(VENV)-oldest/bin/python -m pytest -m slow -q tests/training/test_compile.py tests/training/test_cuda_graphs.py

docs: setup
	$(BIN)/mkdocs build --strict
	@echo "To read it: $(BIN)/python -m http.server --directory site"

notebooks: setup
	$(BIN)/python tests/test_notebooks.py

clean:
	rm -rf $(VENV) $(VENV)-oldest runs build site *.egg-info
