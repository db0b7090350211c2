# Every target makes its own environment first; `make env` does nothing when it is up to date.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.stamp
DOCS_STAMP := $(VENV)/.docs-stamp
export TOKENIZERS_PARALLELISM := false

# Packages by the arguments of pip; what pip compiles one after the other every core compiles here.
install = $(BIN)/python -m pip install --quiet --no-compile -c constraints.txt $(1) \
  && { $(BIN)/python -m compileall -qq -j 0 $(VENV)/lib streamline baselines benchmarks || true; }

# The files with tests of a mark: the others need not be imported.
marked = $(shell grep -rl --include='*.py' 'mark\.$(1)\b' tests | sort)

.PHONY: env bench reports test faults package-test slow lint speed gpu docs wheel clean

env: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(call install,-e '.[dev]')
	touch $(STAMP)

bench: env
	$(BIN)/streamline-bench --suite embedded --out out/embedded

# Every committed report again, from its committed records alone.
reports: env
	for file in $$(find reports -name results.json); do \
	  folder=$$(dirname $$file); \
	  rm -rf $$folder/tables $$folder/figures $$folder/report.md $$folder/report.html; \
	  $(BIN)/streamline-bench report $$folder || exit 1; \
	done

test: env
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

# Kills, full disks (for which it must be allowed to mount) and damaged files, all of them.
faults: env
	$(BIN)/python -m pytest -q -n 2 -m "faults or not faults" tests/faults

package-test: env
	$(BIN)/python -m pytest -q -m package $(call marked,package)

slow: env
	$(BIN)/python -m pytest -q -n 2 --dist loadscope --no-loadscope-reorder -m slow $(call marked,slow)

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

speed: env
	$(BIN)/python -m streamline.benchmarks.speed

# One accelerator, at most eight minutes; in small anywhere: --shape tiny --device cpu.
gpu: env
	TOKENIZERS_PARALLELISM=true $(BIN)/python -m streamline.benchmarks.gpu --out reports/gpu

# The site, into out/docs; a link that leads nowhere fails it.
docs: $(DOCS_STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

$(DOCS_STAMP): $(STAMP)
	$(call install,-e '.[docs]')
	touch $(DOCS_STAMP)

wheel: env
	$(BIN)/python -m build --wheel --no-isolation --outdir out/dist

clean:
	rm -rf out build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
