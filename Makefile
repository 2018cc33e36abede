# make demo   set everything up, then run the whole pipeline on captures from the simulated rig, in ./demo
# make test   set everything up, then linters, type checker, layering and tests
# Both can be stopped at any moment; the next call goes on where the last one was.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup demo test clean-demo

BIN := .venv/bin
DEMO := demo
SUBJECTS ?= 5
EXPRESSIONS ?= 4

export PYTHON

help:
	@sed -n 's/^# //p' Makefile | head -3

setup:
	@./bootstrap.sh

demo: setup
	@test -e $(DEMO)/captures/session/session.json || \
	  $(BIN)/nphm simulate $(DEMO)/captures --subjects $(SUBJECTS) --expressions $(EXPRESSIONS)
	@test -e $(DEMO)/workspace/pipeline.toml || $(BIN)/nphm init $(DEMO)/workspace --preset demo
	@$(BIN)/nphm ingest $(DEMO)/captures/session -w $(DEMO)/workspace
	@$(BIN)/nphm run -w $(DEMO)/workspace

clean-demo:
	rm -rf $(DEMO)

test: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/pytest --numprocesses auto --dist loadfile
