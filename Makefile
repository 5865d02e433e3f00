# Everything runs in environments that these targets make; nothing is installed by hand.
#   make demo    federated training on real electrocardiograms, about two minutes
#   make test    linters, types and all tests
PYTHON ?= python3
# TensorFlow 2.15, which builds the models, needs Python 3.11.
PYTHON_MODELS ?= python3.11

VENV := .venv
MODELS := .venv-models
# Systems to compare with, each in an environment of its own.
NVFLARE := .venv-nvflare
FLOWER := .venv-flower
BIN := $(VENV)/bin
PIP := -m pip install --quiet --disable-pip-version-check

.PHONY: demo test test-fast test-models lint format bench bench-peers long-test clean

demo: $(VENV)/.demo
	$(BIN)/vitalring simulate

test: lint test-models $(VENV)/.test
	$(BIN)/python -m pytest -n auto --dist loadfile

test-fast: $(VENV)/.test
	$(BIN)/python -m pytest -n auto --dist loadfile tests/unit

test-models: $(MODELS)/.test
	if [ -x $(MODELS)/bin/pytest ]; then $(MODELS)/bin/python -m pytest -n auto --dist loadfile tests/models; fi

# Tests of an hour rather than of minutes: kills over 20 rounds, 100,000 hostile messages.
long-test: $(VENV)/.test
	VITALRING_LONG=1 $(BIN)/python -m pytest -m long tests

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.test $(MODELS)/.test
	$(BIN)/vitalring bench path --tensorflow $(MODELS)/bin/python

bench-peers: $(VENV)/.test $(NVFLARE)/.done $(FLOWER)/.done
	$(BIN)/vitalring bench secure-sum --nvflare $(NVFLARE)/bin/python --flower $(FLOWER)/bin/python

$(NVFLARE)/.done:
	$(PYTHON) -m venv $(NVFLARE)
	$(NVFLARE)/bin/python $(PIP) 'nvflare[HE]'
	touch $@

$(FLOWER)/.done:
	$(PYTHON) -m venv $(FLOWER)
	$(FLOWER)/bin/python $(PIP) flwr
	touch $@

$(BIN)/python:
	PYTHON=$(PYTHON) sh tools/system-packages.sh python
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml | $(BIN)/python
	$(BIN)/python $(PIP) --editable .
	touch $@

$(VENV)/.test: pyproject.toml | $(BIN)/python
	sh tools/system-packages.sh mosquitto
	$(BIN)/python $(PIP) --editable '.[test,lint]'
	touch $@ $(VENV)/.demo

$(MODELS)/.test: pyproject.toml
	if command -v $(PYTHON_MODELS) >/dev/null && $(PYTHON_MODELS) -c pass; then \
		$(PYTHON_MODELS) -m venv $(MODELS) && \
		$(MODELS)/bin/python $(PIP) --editable '.[models,test]'; \
	else \
		mkdir -p $(MODELS); \
		echo "LEFT OUT: the tests that build models, because there is no $(PYTHON_MODELS)" >&2; \
	fi
	touch $@

clean:
	rm -rf $(VENV) $(MODELS) $(NVFLARE) $(FLOWER) .mypy_cache .ruff_cache .pytest_cache .hypothesis build *.egg-info
