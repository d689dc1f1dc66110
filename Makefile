# One environment in .venv, two commands: `make demo` and `make test`.
# Installation steps are skipped while their stamp file is newer than what they depend on.

PYTHON ?= python3
VENV ?= .venv
# Extra arguments for pip, empty by default: e.g. PIP_TORCH_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"
# picks the CPU build of PyTorch where the default index serves the CUDA build (Linux).
PIP_TORCH_ARGS ?=
# Arguments for the programs: make train ARGS="--seed 1", make test ARGS="-m 'not slow'", make conformance ARGS="-k Gated"
ARGS ?=
# Seconds for each test of `make fuzz`; RAVLM_FUZZ_SEED in the environment says where its random numbers begin.
FUZZ_SECONDS ?= 450
# Which kernels `make kernels` takes: any but the processor's own. oneDNN goes without AMX: where it has that, attention in
# bfloat16 takes a kernel that PyTorch has for AVX-512 alone.
KERNELS ?= $(if $(shell grep -m1 avx512f /proc/cpuinfo 2>/dev/null),ATEN_CPU_CAPABILITY=avx2 MKL_CBWR=AVX2 ONEDNN_MAX_CPU_ISA=AVX512_CORE_VNNI,ATEN_CPU_CAPABILITY=default MKL_CBWR=COMPATIBLE)

BIN := $(VENV)/bin
# Apart from the rest: where torchao or bitsandbytes is installed, every program that imports transformers loads it.
QUANTIZATION := $(VENV)/quantization
HARNESS := .conformance
PIP := $(BIN)/python -m pip install --disable-pip-version-check --quiet $(PIP_TORCH_ARGS) -c constraints.txt
PACKAGING := setup.py pyproject.toml constraints.txt tests/no-deps.txt
CODE := src tests examples benchmarks docs setup.py

.DEFAULT_GOAL := help
.PHONY: help demo test fuzz kernels conformance train docs tables lint clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.demo-installed  ## answer questions about flags with the shipped model; writes demo.png
	HF_HUB_OFFLINE=1 $(BIN)/python examples/demo.py $(ARGS)

test: lint  ## lint, types, floors, then all tests and doctests
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto $(ARGS)
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 PYTHONPATH=$(QUANTIZATION) $(BIN)/python -m pytest -q -k quantized \
		tests/hub/test_compressing.py tests/model/test_good_citizen.py tests/model/test_quantized.py \
		tests/training/test_lora.py

# What is computed may differ in its last bits from processor to processor; what the tests say of it may not.
kernels: $(VENV)/.test-installed  ## the quick tests that compute, once more with other kernels of PyTorch and MKL (KERNELS)
	$(KERNELS) HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto -m "not slow" $(ARGS) \
		tests/explain tests/model tests/pipelines tests/retrieval/encoding tests/training

fuzz: $(VENV)/.test-installed  ## random damage, kills, texts and command lines for an hour (FUZZ_SECONDS, RAVLM_FUZZ_SEED)
	RAVLM_FUZZ_SECONDS=$(FUZZ_SECONDS) HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -rP -m fuzz $(ARGS) tests/fuzz

# The suites come from the source archives of the installed versions, which are downloaded once into HARNESS.
conformance: $(VENV)/.test-installed  ## common test suites of transformers and peft, run on our classes
	$(BIN)/python tests/conformance/build_harness.py $(HARNESS)
	cd $(HARNESS) && HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=1 \
		$(abspath $(BIN))/python -m pytest -c pyproject.toml -q -n auto $(CURDIR)/tests/conformance $(ARGS)

train: $(VENV)/.demo-installed  ## train retriever and reader on the flags; writes the folder that the demo loads
	$(BIN)/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no \
		--num_cpu_threads_per_process $$(getconf _NPROCESSORS_ONLN) examples/train_flags.py $(ARGS)

docs: $(VENV)/.test-installed  ## pages of the Python interface, in build/docs
	HF_HUB_OFFLINE=1 $(BIN)/python docs/build.py build/docs

tables: $(VENV)/.test-installed  ## the tables of docs/encoders.md and docs/readers.md, as the tests have them
	WRITE_DOCS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -q -k "page_of_the_documents" tests/hub tests/retrieval/encoding

# Without a cache: an old one takes modules that came since for missing ones.
lint: $(VENV)/.test-installed  ## format check, lint, import floors, types
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/lint-imports --no-cache
	$(BIN)/mypy

clean:  ## remove the environment, caches and build outputs
	rm -rf $(VENV) $(HARNESS) build dist src/*.egg-info .mypy_cache .pytest_cache .ruff_cache demo.png
	find $(CODE) -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/pip:
	$(PYTHON) -m venv $(VENV)

# The environment is an order-only prerequisite: its date says nothing about what is installed in it.
$(VENV)/.demo-installed: $(PACKAGING) | $(BIN)/pip
	@echo "Installing hf_ravlm and what it needs into $(VENV): one to five minutes, once."
	$(PIP) -e .
	@touch $@

$(VENV)/.test-installed: $(PACKAGING) | $(BIN)/pip
	@echo "Installing hf_ravlm, what it needs and what its tests need into $(VENV): one to five minutes, once."
	$(PIP) -e ".[dev]"
	$(PIP) --no-deps -r tests/no-deps.txt
	$(PIP) --no-deps --target $(QUANTIZATION) "torchao>=0.15" "bitsandbytes>=0.48"
	@touch $@ $(VENV)/.demo-installed
