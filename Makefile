# Two commands matter: `make workbook` and `make test`. `make help` lists the rest.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
OUT ?= build/workbook
STUDY ?= build/reference-study
PROFILE ?= toy
STARTED := $(shell date +%s)

# Kernels of this environment come before whatever kernels the user has installed elsewhere.
export JUPYTER_PREFER_ENV_PATH := 1

.PHONY: help workbook test lab benchmark figures times lock clean

help:
	@echo "make workbook   set up and run the notebooks on drawn faces, into $(OUT)"
	@echo "make test       set up and run all checks and tests"
	@echo "make lab        set up and open the notebooks in JupyterLab"
	@echo "make benchmark  set up and measure how fast the rooms are on this machine"
	@echo "make figures    set up and measure what references give on unseen people; writes into figures/"
	@echo "make times      run and measure the notebooks, renew their outputs, write the times into the README"
	@echo "make lock       find exact versions anew (for maintainers)"
	@echo "make clean      remove what runs have built; the environment stays"

workbook: $(READY)
	$(BIN)/refbfr notebooks run --out $(OUT) --profile $(PROFILE)
	@echo "Open $(OUT)/00_start_here.ipynb, or run make lab. $$(( $$(date +%s) - $(STARTED) )) s, set-up included."

# The guard on PYTHONPATH refuses every connection to another machine, in the tests and in the kernels of the notebooks.
# It stands in the lines that need it, because what is exported for a target also reaches the set-up before it.
GUARDED := PYTHONPATH="$(CURDIR)/tests/offline" REFBFR_FIGURES="$(CURDIR)/build/test-figures"
test: $(READY)
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(GUARDED) $(BIN)/python -m pytest -q
	$(GUARDED) $(BIN)/python -m pytest -q --nbmake notebooks
	@echo "All checks passed. $$(( $$(date +%s) - $(STARTED) )) s, set-up included."

lab: $(READY)
	$(BIN)/jupyter lab notebooks

benchmark: $(READY)
	$(BIN)/python benchmarks/run.py

figures: $(READY)
	$(BIN)/refbfr evaluate references --out $(STUDY)
	$(BIN)/python -m refbfr_core.notebook.study_figure $(STUDY)
	$(BIN)/python -m refbfr_core.notebook.contact_sheet
	@echo "The pictures and the table are in figures/."

times: $(READY)
	$(BIN)/python notebooks/build.py --execute --measure
	$(BIN)/python docs/times.py

# The stamp is written last, so an interrupted set-up is taken up again and a finished one costs nothing.
$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; give it with make PYTHON=...")'
	@echo "Setting up the environment in $(VENV): about 200 packages, once."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	@# Two builds of OpenCV share one folder and the last to come wins; the one without windows also runs where there is no display.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --force-reinstall $$(grep '^opencv-python-headless==' requirements.lock)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	$(BIN)/python -c 'from refbfr_core import torchvision_ops; torchvision_ops.install_at_start_up()'
	@touch $@

# torch and torchvision are built for each other, so their versions are chosen together.
LOCKED_TORCH := torch==2.13.0 torchvision==0.28.0
lock:
	rm -rf build/lock
	$(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip install --quiet $(LOCKED_TORCH) '.[notebooks,photos,metrics,baselines,prompts,dev]'
	build/lock/bin/python docs/lock.py > build/lock.txt
	mv build/lock.txt requirements.lock
	rm -rf build/lock

clean:
	rm -rf build
