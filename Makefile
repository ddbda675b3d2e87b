# Short names for plain `pulumi` commands; `make env` prints the variables that they run under.
#   STACK=gke      another stack than dev: Pulumi.gke.yaml
#   YES=1          change any stack without asking, for scripts
#   MACHINE=name   one machine for `make logs`
#   PYTEST=...     arguments for pytest; `make test` then runs only these tests
#   JOBS=3         run 3 test files in parallel; SEED=7 repeats the random order of a run
#   ONLY=a,c       only these parts of `make bench`, or these mutations of `make mutants`; REPEATS=5 instead of 3
#   UPGRADE=1      `make lock` takes the newest versions

STACK ?= dev
PYTHON ?= python3

python = .venv/bin/python
# Stack dev is a cluster on this computer: it costs nothing, so nothing is asked.
dev = $(filter dev,$(STACK))
yes = $(if $(dev),--yes --skip-preview,$(if $(YES),--yes))
file = Pulumi.$(notdir $(STACK)).yaml
# Between a key and its value may be blanks and a quote.
cloud = $(shell grep -qsE 'target:[^a-z]*kubernetes|source:[^a-z]*compute' $(file) && echo cloud)
# In Google Cloud, where machines that were switched off, preempted or deleted are only seen by looking.
google = $(shell grep -qsE 'source:[^a-z]*(compute|gke)' $(file) && echo google)
compute = $(shell grep -qs 'source:[^a-z]*compute' $(file) && echo compute)
machines = $(shell grep -qs 'source:[^a-z]*local' $(file) && echo machines)
# The engine cannot tell a machine that is dead for good from one that is away.
dead = If a machine that did not answer is dead for good: write `gone: true` beside its name in $(file), and make up; \
	nothing is run on it any more, and make destroy passes it by, too.
theirs = $(and $(shell grep -s 'target:[^a-z]*machines' $(file)),$(shell grep -s 'source:[^a-z]*existing' $(file)))
hint = $(if $(theirs),|| { echo '$(dead)' >&2; exit 1; })

known = test -f $(file) || { echo 'error: no $(file): copy one of $(wildcard Pulumi.*.yaml), and edit it' >&2; exit 1; }
install = $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: $(PYTHON) is %d.%d, \
	expected 3.11 or newer: make PYTHON=python3.11" % sys.version_info[:2])' && $(PYTHON) -m tools.install
# What a killed first `up` made and could not note down.
sweep = DIRECTORY=$${XDG_DATA_HOME:-$$HOME/.local/share}/daskstack/machines/$(notdir $(STACK)) NAME=$(STACK) \
	bash on_this_computer/local_machines/network.sh sweep
variables = variables=$$($(PYTHON) -m daskstack.engine $(STACK)) && eval "$$variables"

# If this is set, every program compiles Pulumi's and Dask's packages again, which takes seconds.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help up preview destroy left rehearse status logs env test lint unit mutants bench lock lock-project docs pictures

help:
	@echo 'make up        create or change the cluster of stack $(STACK)'
	@echo 'make preview   show what `make up` would change'
	@echo 'make status    show the state of the cluster'
	@echo 'make logs      show the last log lines of its services (MACHINE=name for one machine)'
	@echo 'make destroy   delete the cluster'
	@echo 'make left      list what still exists in Google Cloud, with its cost'
	@echo 'make rehearse  try a stack for Kubernetes or Google Cloud on this computer, then delete it (STACK=vms)'
	@echo 'make env       print the variables for plain pulumi: eval "$$(make -s env)"'
	@echo 'make test      run every check and test'
	@echo 'make lint      check style, types and shell programs: ten seconds'
	@echo 'make unit      run lint and the unit tests: about a minute, without root; starts no machine or pod'
	@echo 'make mutants   break each promise once and require that its test fails (over an hour; ONLY=name for one)'
	@echo 'make bench     measure this program and alternatives; write bench/results.md (100 minutes)'
	@echo 'make docs      write the generated pages: settings and proof'
	@echo 'make pictures  take the pictures in docs/pictures from real runs (ten minutes)'
	@echo 'make lock      update the locks of the cluster'"'"'s Python packages from environment.in'
	@echo 'make lock-project   update the locks of this project'"'"'s own Python packages'

up:
	@$(known)
	@$(install) program $(machines) $(cloud)
	@$(PYTHON) -m tools.unlock $(STACK)
	@$(if $(compute),$(python) -m tools.allow_my_address $(STACK))
	@$(variables) && pulumi stack select --create $(STACK) && \
		pulumi up --stack $(STACK) $(yes) $(if $(compute),--refresh) $(hint)
	@$(python) -m daskstack summary $(STACK)

preview:
	@$(known)
	@$(install) program $(machines) $(cloud)
	@$(variables) && eval "$$($(PYTHON) -m on_this_computer.google_credentials)" && pulumi stack select --create $(STACK) && \
		pulumi preview --stack $(STACK)

# The stack of this computer leaves nothing behind, not even its state.
destroy:
	@$(install) program $(machines) $(cloud)
	@$(PYTHON) -m tools.unlock $(STACK)
	@$(PYTHON) -m tools.undo_unfinished $(STACK)
	@$(variables) && pulumi stack select $(if $(dev),--create) $(STACK) && pulumi destroy --stack $(STACK) $(yes) $(hint)
	@$(if $(machines),$(sweep))
	-@$(if $(and $(google),$(shell command -v gcloud)),$(python) -m tools.cloud_leftovers $(STACK))
	@$(if $(dev),$(variables) && pulumi stack rm $(STACK) --yes --preserve-config --remove-backups)

left:
	@$(install) program
	@$(python) -m tools.cloud_leftovers $(STACK)

rehearse:
	@$(known)
	@$(install) rehearsal $(if $(compute),compute,kubernetes)
	@$(python) -m tools.rehearse $(STACK)

status:
	@$(install) program
	@$(python) -m daskstack status $(STACK)

logs:
	@$(install) program
	@$(python) -m daskstack logs $(STACK) $(MACHINE)

env:
	@$(install) program
	@$(PYTHON) -m daskstack.engine $(STACK)

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

comma = ,
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
