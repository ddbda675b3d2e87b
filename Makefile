# Everything here is short for plain `pulumi`: `make env` prints the variables that it runs under.
#   STACK=gke      another stack than dev: Pulumi.gke.yaml
#   YES=1          no question before such a stack is changed, for scripts
#   MACHINE=name   `make logs` of one machine
#   PYTEST=...     arguments for pytest in `make test`, which then runs it alone
#   JOBS=3         so many files of tests beside each other; SEED=7 repeats a run's random order
#   ONLY=a,c       these parts alone of `make bench`, or these mutations of `make mutants`; REPEATS=5 instead of 3
#   UPGRADE=1      `make lock` to the newest versions

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

# Where this is set, every program would compile Pulumi's and Dask's packages anew: seconds of processor each.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help up preview destroy left rehearse status logs env test lint unit mutants bench lock lock-project docs

help:
	@echo 'make up        build or change the cluster of stack $(STACK)'
	@echo 'make preview   show what `make up` would change'
	@echo 'make status    how the cluster is'
	@echo 'make logs      what its services said (MACHINE=name for one machine)'
	@echo 'make destroy   take the cluster away'
	@echo 'make left      what of it still exists in Google Cloud, and costs'
	@echo 'make rehearse  try a stack of Kubernetes or Google Cloud on this computer, and take it away (STACK=vms)'
	@echo 'make env       the variables for plain pulumi: eval "$$(make -s env)"'
	@echo 'make test      every check and test'
	@echo 'make lint      check style, types and shell programs: 20 seconds'
	@echo 'make unit      lint and the unit tests: a few minutes, without root; no machine or pod starts'
	@echo 'make mutants   break each promise once, and see its test fail (more than an hour; ONLY=name for one)'
	@echo 'make bench     figures beside those of other ways, into bench/results.md (100 minutes)'
	@echo 'make docs      write the pages that are generated: settings, and what the tests prove'
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

lock:
	@$(install) && $(PYTHON) -m tools.lock

lock-project:
	@$(install) && $(PYTHON) -m tools.lock project
