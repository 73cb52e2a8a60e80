# make demo   set up, export the shipped detector, prove it, build an engine, run it on a clip
# make test   set up, run all tests
# make lint   ruff and mypy
# make soak   the long proofs; their records are committed

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEMO := out/demo
BUNDLE := $(DEMO)/retinanet
EXPORTED := $(DEMO)/.exported
EXTRAS := runtime,cpu,rtx,video,track,webhook,mqtt,web,train,export,benchmarks,dev
# The newest of some packages, which are pinned, need Python 3.11: 3.10 gets what pyproject.toml allows.
PINS := import sys; print("-c constraints.txt" if sys.version_info >= (3, 11) else "")
EXPORT_SOURCES := $(shell find export training runtime/contract runtime/engines -name '*.py') \
	$(wildcard weights/*.safetensors)

export PYTHONUNBUFFERED := 1

.PHONY: setup demo test lint soak screenshots clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	pins=$$($(BIN)/python -c '$(PINS)') && \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $$pins -e '.[$(EXTRAS)]'
	touch $@

# Exit status 3: no TensorRT can be had here; the bundle is whole and runs on other backends.
$(EXPORTED): $(READY) $(EXPORT_SOURCES)
	$(BIN)/python export/to_trt.py --model retinanet --out $(BUNDLE) || [ $$? -eq 3 ]
	touch $@

demo: $(EXPORTED)
	$(BIN)/python demo.py --bundle $(BUNDLE) --out $(DEMO)

test: $(READY)
	$(BIN)/python -m pytest -q -m "not slow"

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

soak: $(READY)
	$(BIN)/python -m pytest -q -m slow
	$(BIN)/python benchmarks/live.py soak --frames 200000

screenshots: $(EXPORTED)
	$(BIN)/python tests/take_screenshots.py $(BUNDLE)

clean:
	rm -rf out runs/.cache .pytest_cache .mypy_cache .ruff_cache
