# make train    set everything up and train the default model; ARGS="..." are Hydra overrides
# make test     set everything up, check the style and the types, run the tests
# make soak     the long drills: hundreds of kills
# make bench    speed and memory against named baselines, one table
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
ARGS ?=

.PHONY: train test check soak bench clean
train: $(VENV)/installed
	$(BIN)/python train.py $(ARGS)

test: check
	$(BIN)/python -m pytest -n 2 --dist loadgroup --no-loadscope-reorder -m "not soak" --durations=20 $(ARGS)

check: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --num-workers 2 hydra_trainer launchers models tests benchmarks

soak: $(VENV)/installed
	$(BIN)/python -m pytest -m soak $(ARGS)

bench: $(VENV)/installed
	$(BIN)/python -m benchmarks $(ARGS)

# torch first and by its exact version: a resolver that meets it inside another package's range may
# take another build of it. Python compiles what it imports; pip would compile all, for a minute.
# torch is compiled beside the rest of the installation, which takes one core.
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile
$(VENV)/installed: constraints.txt pyproject.toml setup.cfg
	$(PYTHON) -m venv $(VENV)
	$(PIP) $$(grep '^torch==' constraints.txt)
	$(BIN)/python -m compileall -q $(VENV)/lib/*/site-packages/torch > /dev/null & \
	    $(PIP) -c constraints.txt -e '.[dev]'; code=$$?; wait; exit $$code
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
