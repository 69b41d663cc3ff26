# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO ?= demo
# Exact versions where they were tried, ranges elsewhere (docs/platforms.md).
REQUIREMENTS ?= $(shell $(PYTHON) -c "import platform as p; print('requirements.lock' if (p.system(), p.machine(), *p.python_version_tuple()[:2]) == ('Linux', 'x86_64', '3', '11') else 'requirements-test.txt')")

.PHONY: demo test lint bench docs notebooks lock clean

$(VENV)/.installed: requirements.txt requirements-test.txt requirements.lock
	$(PYTHON) -c "import utils"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -r $(REQUIREMENTS)
	touch $@

demo: $(VENV)/.installed
	$(BIN)/python -m mini_nsd.demo $(DEMO)

# A process per core, each with whole files of tests; two threads in each would wait for one another.
test: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

lint: $(VENV)/.installed
	$(BIN)/python -m ruff check

bench: $(VENV)/.installed
	for script in benchmarks/[a-z]*.py; do $(BIN)/python $$script || exit 1; done

docs: $(VENV)/.installed
	$(BIN)/python docs/make_architecture.py
	$(BIN)/python docs/make_commands.py
	$(BIN)/python -m jupytext --quiet --sync notebooks/*.py
	$(BIN)/python -m nbconvert --clear-output --inplace --log-level ERROR notebooks/*.ipynb

# The notebooks on what `make demo` left, as pages beside its report.
notebooks: $(VENV)/.installed
	WORKDIR=$(abspath $(DEMO))/work NSD_ROOT=$(abspath $(DEMO))/world NSD_MODELS=tiny \
		$(BIN)/python -m nbconvert --to html --execute --log-level ERROR \
		--template notebook_page --TemplateExporter.extra_template_basedirs=docs \
		--output-dir $(DEMO)/work/report/subj01/notebooks notebooks/*.ipynb

# The newest versions that the ranges allow, in a fresh environment. What torch itself pins for CUDA is left to torch.
lock:
	rm -rf $(VENV)
	$(MAKE) $(VENV)/.installed REQUIREMENTS=requirements-test.txt
	{ sed -n '/^#/p' requirements.lock; $(BIN)/python -m pip freeze | grep -viE '^(nvidia|cuda|triton)[-_=]'; } > requirements.lock.new
	mv requirements.lock.new requirements.lock

clean:
	rm -rf $(DEMO)
