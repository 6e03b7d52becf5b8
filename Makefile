# One command for each chore. Everything lives in .venv and .cache of this folder.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
IMAGE ?= kiln:dev
SUDO := $(if $(filter 0,$(shell id -u)),,sudo)

.PHONY: help venv demo cluster cluster-down image test test-quick lint style format types imports prose docs reference bench fuzz mutants chart troubleshooting locks clean

help:  ## what there is
	@sed -n 's/^\([a-z-]*\):.*  ## /\1\t/p' Makefile

venv: .venv/complete  ## .venv with everything in it, by hash

# The stamp comes last: what was broken off before it is begun anew.
.venv/complete: requirements/dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Kiln needs Python 3.11 or newer as $(PYTHON); name another with make PYTHON=..."; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "Python's venv module is missing: installing the package python3-venv"; \
		$(SUDO) apt-get update -qq && $(SUDO) apt-get install -qq -y --no-install-recommends python3-venv; } || \
		{ echo "Install the venv module of $(PYTHON) (on Debian and Ubuntu: python3-venv), then start again."; exit 1; }
	$(PYTHON) -m venv $(if $(wildcard $@),,--clear) .venv
	@rm -f $@
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

demo: venv  ## from a git push to a pushed image, on this machine
	@$(BIN)/python -m tools.demo.run

cluster: venv  ## Kiln in a Kubernetes cluster on this machine (kind), with all it needs; it stays
	@$(BIN)/python -m tools.demo.cluster up

cluster-down: venv  ## takes that cluster away, and what is beside it
	@$(BIN)/python -m tools.demo.cluster down

image:  ## web, controller and builder as one image, kiln:dev, and what makes it as big as it is
	docker buildx build --quiet --load --tag $(IMAGE) \
		--build-arg VERSION=$$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml) \
		--build-arg REVISION=$$(git rev-parse HEAD 2>/dev/null || echo unknown) .
	@echo "$(IMAGE) is $$(docker image inspect --format '{{.Size}}' $(IMAGE) | numfmt --to=si)B. Its layers:"
	@docker history --format '{{.Size}}\t{{.CreatedBy}}' $(IMAGE) | grep -v '^0B'
	@echo "The biggest of what lies in it, in MiB:"
	@docker run --rm --user 0 $(IMAGE) du -xm --max-depth=4 / | sort -rn | head -20

test: venv  ## every tier that this machine can run
	@$(BIN)/python -m tests.run

test-quick: venv  ## the same in some minutes: no cluster, no JupyterHub, no browser, nothing that takes long
	@$(BIN)/python -m tests.run --quick unit docker

lint: style format types imports prose  ## style, types, prose, and which way imports point

style: venv
	$(BIN)/ruff check

format: venv
	$(BIN)/ruff format --check

types: venv
	$(BIN)/mypy

imports: venv
	$(BIN)/lint-imports

prose: venv  ## plain English, by the rules in styles/Kiln
	@$(BIN)/python -m tools.prose

docs: venv  ## the documentation as a site, in .cache/site; a warning is an error
	@$(BIN)/python -m sphinx -q -W -n -c docs -d .cache/doctrees -b html . .cache/site
	@echo "The documentation is .cache/site/index.html"

reference: venv  ## the pages of docs/ that are made from the code: routes and event types
	$(BIN)/python -m tools.reference

bench: venv  ## figures, each beside what it is compared with
	@$(BIN)/python -m tests.bench

fuzz: venv  ## ten minutes for each parser
	@$(BIN)/python -m tests.fuzz

mutants: venv  ## changes the rules of the policy one by one and lists what no test notices: tests/mutants.md says why
	$(BIN)/mutmut run
	$(BIN)/mutmut results

chart: venv  ## what is made from the chart: its table of values, and the golden files of its tests (needs helm)
	$(BIN)/python tools/values_table.py
	GOLDEN=renew $(BIN)/python -m pytest -q tests/cluster/chart/test_rendered.py -k last_looked_at

troubleshooting: venv  ## the lists of errors' sentences in docs/troubleshooting.md
	$(BIN)/python tools/sentences.py

locks:  ## the locked versions, renewed (needs uv)
	uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
		--no-annotate --quiet --upgrade pyproject.toml -o requirements/runtime.txt
	uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
		--no-annotate --quiet --upgrade --extra otel pyproject.toml -c requirements/runtime.txt -o requirements/otel.txt
	uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
		--no-annotate --quiet --upgrade --extra otel --group dev pyproject.toml -c requirements/runtime.txt -o requirements/dev.txt
	uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
		--no-annotate --quiet --group build -c requirements/dev.txt -o requirements/build.txt
	uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
		--no-annotate --quiet --group docs -c requirements/dev.txt -o requirements/docs.txt
	uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
		--no-annotate --quiet --upgrade --group hub -o requirements/hub.txt

clean:  ## everything that the other targets made
	rm -rf .venv .cache .hypothesis .mypy_cache .ruff_cache .pytest_cache .import_linter_cache mutants dist
	find . -name __pycache__ -prune -exec rm -rf {} +
