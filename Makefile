# Targets for a stack install what is missing, then run the command of `daskstack` with the same name.
#   STACK=gke      another stack than dev: Pulumi.gke.yaml
#   YES=1          change any stack without asking, for scripts
#   MACHINE=name   one machine for `make logs`
#   PYTEST=...     arguments for pytest; `make test` then runs only these tests
#   JOBS=3         run 3 test files in parallel; SEED=7 repeats the random order of a run
#   ONLY=a,c       only these parts of `make bench`, these mutations of `make mutants`, or examples; REPEATS=5 instead of 3
#   UPGRADE=1      `make lock` takes the newest versions

STACK ?= dev
PYTHON ?= python3

python = .venv/bin/python
# The package of this folder, also where several folders share one .venv.
daskstack = $(python) -m daskstack
stack = --stack '$(STACK)'
yes = $(if $(YES),--yes)
install = $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: $(PYTHON) is %d.%d, \
	expected 3.11 or newer: make PYTHON=python3.11" % sys.version_info[:2])' && $(PYTHON) -m tools.install

# If this is set, every program compiles Pulumi's and Dask's packages again, which takes seconds.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help up preview destroy leftovers rehearse status logs env examples test lint unit mutants bench lock lock-project docs pictures

help:
	@echo 'make up        create or change the cluster of stack $(STACK)'
	@echo 'make preview   show what `make up` would change'
	@echo 'make status    show the state of the cluster'
	@echo 'make logs      show the last log lines of its services (MACHINE=name for one machine)'
	@echo 'make destroy   delete the cluster'
	@echo 'make leftovers list what still exists in Google Cloud, with its cost'
	@echo 'make rehearse  try a stack for Kubernetes or Google Cloud on this computer, then delete it (STACK=vms)'
	@echo 'make env       print the variables for plain pulumi: eval "$$(make -s env)"'
	@echo 'make examples  run the examples on the cluster (ONLY=name for one)'
	@echo 'make test      run every check and test'
	@echo 'make lint      check style, types and shell programs: ten seconds'
	@echo 'make unit      run lint and the unit tests: about a minute, without root; starts no machine or pod'
	@echo 'make mutants   break each promise once and require that its test fails (over an hour; ONLY=name for one)'
	@echo 'make bench     measure this program and alternatives; write bench/results.md (80 minutes)'
	@echo 'make docs      write the generated pages: settings and proof'
	@echo 'make pictures  take the pictures in docs/pictures from real runs (ten minutes)'
	@echo 'make lock      update the locks of the cluster'"'"'s Python packages from environment.in'
	@echo 'make lock-project   update the locks of this project'"'"'s own Python packages'

up destroy:
	@$(install) $(if $(filter dev,$(STACK)),dev,program)
	@$(daskstack) $@ $(stack) $(yes)

preview status leftovers rehearse env:
	@$(install) program
	@$(daskstack) $@ $(stack)

logs:
	@$(install) program
	@$(daskstack) logs $(stack) $(MACHINE)

comma = ,
examples:
	@$(install) program
	@STACK='$(STACK)' $(python) -m tools.examples $(subst $(comma), ,$(ONLY))

test:
	@$(install) program machines rehearsal kubernetes test
	@$(python) -m tools.lint
	@$(if $(PYTEST),,$(python) -m tools.mutants --sample 5)
	@$(python) -m tools.test $(PYTEST)

lint:
	@$(install) lint
	@$(python) -m tools.lint

unit: lint
	@$(python) -m tools.test --unit

mutants:
	@$(install) program machines rehearsal kubernetes test
	@$(python) -m tools.mutants $(subst $(comma), ,$(ONLY))

bench:
	@$(install) program machines rehearsal kubernetes bench
	@$(python) -m bench $(if $(ONLY),--only $(ONLY)) $(if $(REPEATS),--repeats $(REPEATS))

docs:
	@$(install) unit
	@$(python) -m settings.reference
	@$(python) -m tools.mutants --table

pictures:
	@$(install) program machines rehearsal kubernetes pictures
	@$(python) -m tools.pictures

lock:
	@$(install) && $(PYTHON) -m tools.lock

lock-project:
	@$(install) && $(PYTHON) -m tools.lock project
