# Everything runs in .venv, which is made on first use. Needs make and Python >= 3.11.

VENV := .venv
BIN := $(VENV)/bin
FIRMWARE := $(VENV)/share/ovmf/OVMF.fd
FLOORS := cluster node psp tio workloads
PYTHON ?= $(shell for p in python3 python3.15 python3.14 python3.13 python3.12 python3.11 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)

# pip speaks only where it fails.
LOG := $(VENV)/install.log
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# A stranger's verifier of reports, whose other parts would draw in a blockchain client that no test needs.
VERIFIER := 'secretvm-verify==0.12.0' 'dcap-qvl>=0.7'
OR_SAY_WHY := > $(LOG) 2>&1 || { tail -n 20 $(LOG) >&2; exit 1; }

# The tests start some hundred Pythons, and each would compile all of us anew.
unexport PYTHONDONTWRITEBYTECODE

# Three at a time on two cores: those that start Ray stay together in two processes, which often wait.
PYTEST := $(BIN)/python -m pytest -q -n 3 --dist loadgroup

.PHONY: demo test check bench clean

demo: $(VENV)/.ready-run
	@$(BIN)/sevfleet run

test: $(VENV)/.ready-dev
	@$(PYTEST) $(TESTS)

check: $(VENV)/.ready-dev
	@$(BIN)/ruff check .
	@$(BIN)/mypy --strict $(addprefix -p ,$(FLOORS))
	@$(BIN)/python -m pytest -q tests/test_floors.py

bench: $(VENV)/.ready-run
	@$(BIN)/sevfleet bench --json

clean:
	@rm -rf $(VENV) build dist out *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	@find $(FLOORS) tests -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps are remade when the list of what to install changes.
$(VENV)/.ready-run: pyproject.toml | $(BIN)/python
	@echo "Installing sevfleet into $(VENV) (once; Ray is large) ..."
	@$(PIP) --editable . $(OR_SAY_WHY)
	@.ci/debian-file ovmf usr/share/ovmf/OVMF.fd $(FIRMWARE) /usr/share/ovmf/OVMF.fd || true
	@touch $@

$(VENV)/.ready-dev: pyproject.toml | $(VENV)/.ready-run
	@echo "Installing the test tools into $(VENV) (once) ..."
	@$(PIP) --editable '.[dev]' $(OR_SAY_WHY)
	@$(PIP) --no-deps $(VERIFIER) $(OR_SAY_WHY)
	@touch $@

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "sevfleet: expected Python 3.11 or later on the PATH, found none" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) 2>/dev/null \
		|| { rm -rf $(VENV); $(PYTHON) -m venv --without-pip $(VENV) \
			&& $(PYTHON) -m pip --python $(BIN)/python install --quiet pip; } \
		|| { rm -rf $(VENV); echo "sevfleet: $(PYTHON) cannot make a virtual environment; on Debian install python3-venv" >&2; exit 1; }
