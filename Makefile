# Each target makes .venv first when it is missing, or when what it is made from has changed.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DEMO_BANK := build/demo-bank

# Triton warns where this is unset, and the tests take warnings for errors.
export TRITON_DEFAULT_FP_FUSION ?= 1

.PHONY: help install demo chat screenshots test test-all check gpu gpu-wheels gpu-attention clean

help:
	@echo "make demo      three processes over one bank: told, asked, made to forget, asked again"
	@echo "make chat      talk with the agent; it remembers in your own bank"
	@echo "make screenshots  docs/screenshots, drawn anew from a bank on the default model"
	@echo "make test      checks and the fast tests"
	@echo "make test-all  checks and every test that this machine can run"
	@echo "make check     lint, format, types and import rules alone"
	@echo "make gpu-attention  every attention pattern on a CUDA device: speed, memory and recall by length"
	@echo "make gpu       the tests that need a CUDA device, then the kernels timed beside their rivals"
	@echo "make gpu GPU_PYTHON=python3  the same with that Python's own torch, and wheels from make gpu-wheels"

install: $(INSTALLED)

# pip below 25.1 doesn't know dependency groups.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(RUN)/python -m pip install --quiet --constraint constraints.txt --editable . --group dev
	@touch $@

demo: $(INSTALLED)
	@rm -rf $(DEMO_BANK)
	@$(RUN)/mnemos demo --bank $(DEMO_BANK)
	@echo
	@echo "The bank is kept in $(DEMO_BANK). Look into it with"
	@echo "  $(RUN)/mnemos memory search \"sister\" --bank $(DEMO_BANK)"

chat: $(INSTALLED)
	@$(RUN)/mnemos chat

screenshots: $(INSTALLED)
	$(RUN)/python examples/screenshots.py docs/screenshots

check: $(INSTALLED)
	$(RUN)/ruff check
	$(RUN)/ruff format --check
	$(RUN)/mypy
	$(RUN)/lint-imports --no-cache

# Two tests at a time with one thread each: two that both take every core only wait for one another.
test: check
	OMP_NUM_THREADS=1 $(RUN)/python -m pytest -q -n 2 --dist worksteal -m "not slow and not gpu"

test-all: check
	OMP_NUM_THREADS=1 $(RUN)/python -m pytest -q -n 2 --dist worksteal -m "not gpu"

# Correctness first, then the figures; the table is printed, its JSON lands in build/kernels.json. With
# GPU_PYTHON=python3 that interpreter's own torch, triton and pytest are used, on a machine that reaches no
# registry; what it lacks comes from the wheels in build/wheels, which `make gpu-wheels` has fetched elsewhere.
# Of the tests only files with a test for a device are collected: the others want more packages.
ifdef GPU_PYTHON
gpu: GPU_RUN := PYTHONPATH=src:build/gpu-site $(GPU_PYTHON)
gpu:
	@if ls build/wheels/*.whl >/dev/null 2>&1; then \
	  $(GPU_PYTHON) -m pip install --quiet --no-index --no-deps --no-compile --upgrade --target build/gpu-site build/wheels/*.whl; \
	fi
else
gpu: GPU_RUN := $(RUN)/python
gpu: $(INSTALLED)
endif
	@if $(GPU_RUN) -c "import sys, torch; sys.exit(not torch.cuda.is_available())"; then \
	  $(GPU_RUN) -m pytest -q -m gpu -W default $$(grep -rl --include='test_*.py' 'mark[.]gpu' tests) && \
	  $(GPU_RUN) -m mnemos.attention.kernels.bench --json build/kernels.json; \
	else \
	  echo "No CUDA device here. 'make test' runs the kernels in Triton's interpreter and compiles them for sm_80 and sm_90."; \
	fi

# For Python 3.12 on x86-64.
gpu-wheels:
	$(PYTHON) -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
	  --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \
	  --constraint constraints.txt --dest build/wheels pydantic pydantic-core annotated-types typing-inspection gguf

gpu-attention: $(INSTALLED)
	@if $(RUN)/python -c "import sys, torch; sys.exit(not torch.cuda.is_available())"; then \
	  mkdir -p build && $(RUN)/mnemos bench attention --lengths 2k,8k,32k,128k,1m --plot build/attention.png --overwrite \
	    --json > build/attention.json && echo "build/attention.json, build/attention.png"; \
	else \
	  echo "No CUDA device here. 'mnemos bench attention' measures at shorter lengths on the CPU."; \
	fi

clean:
	rm -rf build dist
