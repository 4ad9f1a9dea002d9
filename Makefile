PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := runs/demo
# one thread a process: as many processes as cores
WHICH := -m "not slow and not assets and not soak" -q --dist loadfile
FAST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(WHICH) -n auto

.PHONY: help setup demo test check slow soak oldest clean

help:
	@echo "make setup   create $(VENV) with everything"
	@echo "make demo    train the embedded data set on the CPU, sample, evaluate, show the attention"
	@echo "make test    the fast tests"
	@echo "make check   format, lint, types, floors, fast tests"
	@echo "make slow    the tests marked slow and assets (SAGAN_ASSETS names the folder of the assets)"
	@echo "make soak    the longest tests"
	@echo "make oldest  the fast tests and compiling with the oldest versions that pyproject.toml allows"

setup: $(VENV)/ready

$(VENV)/ready: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

$(VENV)-oldest/ready: pyproject.toml tests/oldest.txt
	test -x $(VENV)-oldest/bin/python || $(PYTHON) -m venv $(VENV)-oldest
	$(VENV)-oldest/bin/python -m pip install --quiet --editable ".[dev]" --constraint tests/oldest.txt
	touch $@

demo: setup
	$(BIN)/sagan train configs/shapes32.yaml --out $(DEMO)
	$(BIN)/sagan sample $(DEMO) --out $(DEMO)/images --num 64 --grid
	$(BIN)/sagan evaluate $(DEMO) --num 1000
	$(BIN)/sagan attend $(DEMO) --out $(DEMO)/attention --seeds 0-7 --html
	@echo
	@echo "Look at: $(DEMO)/images/grid.png          samples"
	@echo "         $(DEMO)/attention/attention.png  what the generator attends to"
	@echo "         $(DEMO)/attention/attention.html the same, live under the pointer"
	@echo "         $(DEMO)/samples/                 how training went"

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
	OMP_NUM_THREADS=1 $(VENV)-oldest/bin/python -m pytest -m slow -q tests/test_compile.py tests/test_cuda_graphs.py

clean:
	rm -rf $(VENV) $(VENV)-oldest runs build *.egg-info
