# Everything here sets itself up: a virtual environment in .venv with the pinned requirements.
#
#   make demo        simulate ultrasound, run every stage small, end with the pictures to look at (minutes)
#   make test        ruff and the tests
#   make test-slow   the tests that take minutes: sixty kills, several processes
#   make results     runs of results/ that two CPU cores can do; real pictures in data/raw (hours)
#   make clean       remove .venv and the demo's files

PYTHON ?= python3
VENV := $(CURDIR)/.venv

.PHONY: demo test test-slow results clean

demo: $(VENV)/.installed
	PATH="$(VENV)/bin:$$PATH" bash demo.sh

# Two workers of one thread each: two processes of two threads would fight for the cores of a small machine.
test: $(VENV)/.installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 2

test-slow: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 2 -m slow --timeout 1800

# Simulated pictures may all be shown.
results: demo
	$(VENV)/bin/python results/record.py --run demo --out-dir results/demo --command 'make demo' \
	    --shown Breast-Benign Breast-Malignant Fetal-Head Heart Kidney Thyroid-Nodule
	PATH="$(VENV)/bin:$$PATH" bash results/real_128_cpu.sh data/raw runs/real_128

$(VENV)/.installed: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

clean:
	rm -rf $(VENV) demo
