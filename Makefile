# Every target works on a machine with nothing but Python (>= 3.11) and make: `.venv` is made on demand.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

# What replicate-% and report-% take; `make help` explains them.
SCALE ?=
METHODS ?=
SEEDS ?=
EQUAL ?=
GPUS ?=
LAUNCH ?=
WORKERS ?=
ENGINE ?=
PART ?=
DECODERS ?=
IMAGENET ?=
IMAGES ?=
DATA ?=
DATA_NAME ?=
NETWORK ?=
SIZE ?=
MEASURE ?=
SET ?=
NAME ?=

EXPERIMENTS := $(subst _,-,$(sort $(patsubst replications/%/experiment.py,%,$(wildcard replications/*/experiment.py))))
REPLICATE := $(EXPERIMENTS:%=replicate-%)
REPORT := $(EXPERIMENTS:%=report-%)
PLAN := $(EXPERIMENTS:%=plan-%)

quoted = '$(subst ','\'',$(1))'
# A variable that this very command sets, not the environment.
given = $(if $(filter command,$(firstword $(origin $(1)))),$($(1)))
# IMAGENET is for the experiments on ImageNet alone, and IMAGES for one's own, as either may well be
# in the environment. The scale smoke has images of its own, and refuses those that are given.
goal = $(firstword $(filter replicate-% plan-%,$(MAKECMDGOALS)))
own = $(filter %-own,$(goal))
smoke = $(filter smoke,$(SCALE))
imagenet = $(if $(filter replicate-imagenet-% plan-imagenet-%,$(goal)),$(IMAGENET))
told = $(or $(call given,IMAGES),$(call given,DATA))
images = $(or $(told),$(if $(smoke),,$(or $(if $(own),$(IMAGES)),$(DATA),$(imagenet))))
several = $(filter-out 1,$(GPUS))
launcher = $(or $(LAUNCH),$(BIN)/$(if $(several),torchrun --standalone --max-restarts 3 --nproc-per-node $(GPUS),python))
scale = $(if $(SCALE),--scale $(SCALE))
flags = $(scale) \
	$(if $(METHODS),--methods $(METHODS)) \
	$(if $(SEEDS),--seeds $(SEEDS)) \
	$(if $(call given,EQUAL),--equal $(EQUAL)) \
	$(if $(call given,WORKERS),--workers $(WORKERS)) \
	$(if $(call given,ENGINE),--engine $(ENGINE)) \
	$(if $(call given,PART),--part $(PART)) \
	$(if $(call given,DECODERS),--decoding-workers $(DECODERS)) \
	$(if $(images),--images $(call quoted,$(images))) \
	$(if $(call given,DATA_NAME),--data.name $(call quoted,$(DATA_NAME))) \
	$(if $(call given,NETWORK),--network.name $(call quoted,$(NETWORK))) \
	$(if $(call given,SIZE),--data.image-size $(call quoted,$(SIZE))) \
	$(SET)

# What is known to be wrong is told before anything is installed; hfds/NAME is no folder.
ifneq ($(own),)
ifeq ($(images)$(smoke),)
$(error say where your images lie: make $(own) IMAGES=FOLDER NETWORK=lcnet_050 SIZE=64)
endif
endif

ifneq ($(images),)
ifeq ($(filter hfds/% wds/% torch/% ~%,$(firstword $(images))),)
ifeq ($(shell test -d $(call quoted,$(images)) || echo missing),missing)
$(error $(images): no such folder. Without images, try: make $(firstword $(MAKECMDGOALS)) SCALE=smoke)
endif
endif
endif

ifeq ($(if $(and $(goal),$(GPUS)),$(shell printf %s $(call quoted,$(GPUS)) | grep -xE '[1-9][0-9]*'),1),)
$(error GPUS must be a whole number of at least 1, got $(GPUS))
endif

.DEFAULT_GOAL := help
.PHONY: help install test test-all lint types check clean bench searches feeding results claims wandb-sync wandb-report costs $(REPLICATE) $(REPORT) $(PLAN)

help:  ## Show this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-18s %s\n", $$1, $$2}'
	@printf '  %-18s %s\n' replicate-NAME 'Train and measure the methods of an experiment; tables and figures'
	@printf '  %-18s %s\n' plan-NAME 'Say what that will take, in MACs, images, disk (and hours: MEASURE=1)'
	@printf '  %-18s %s\n' report-NAME 'Make its results again from the finished runs (with its SCALE)'
	@printf '\nNAME is one of\n'
	@printf '  %s\n' $(EXPERIMENTS)
	@printf '\nand each may be followed by\n'
	@printf '  %-32s %s\n' \
	  'SCALE=smoke' 'paper (default), fast (bf16), short (1/10 of the epochs), smoke, cpu' \
	  'IMAGENET=FOLDER or DATA=FOLDER' 'where the images lie: a folder, or hfds/NAME of the Hugging Face hub' \
	  'IMAGES=FOLDER (replicate-own)' 'where your own images lie; with NETWORK=lcnet_050 SIZE=64' \
	  'DATA_NAME=flowers' 'what images are called that are no known data set' \
	  'METHODS="pareco ./mine.py"' 'which methods are compared; one may be a file of your own' \
	  'SEEDS="0 1 2"' 'with which seeds' \
	  'EQUAL=compute' 'methods with equal MACs, search included, in place of equal epochs' \
	  'GPUS=8' 'one process for each GPU of this machine, all on one network' \
	  'LAUNCH="srun torchrun ..."' 'any other launcher; GPUS= is then how many processes it starts' \
	  'WORKERS=16' 'runs at a time; otherwise one on each GPU, or for each CPU core' \
	  'MEASURE=1 (plan-NAME)' 'time some steps here, and say how many hours and device hours it takes' \
	  'ENGINE=ray' 'runs on the cluster of Ray that RAY_ADDRESS names, or on this machine' \
	  'PART=2/4' 'every fourth run from the second on; four such commands do all' \
	  'DECODERS=8' 'processes of each run that decode images; otherwise its part of the cores' \
	  'SET="--training.epochs 50"' 'any other flags; $(BIN)/python -m replications run digits --help'

install: $(INSTALLED)  ## Make .venv and install the package with its tested versions

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

$(REPLICATE): replicate-%: $(INSTALLED)
	$(if $(several),$(BIN)/python -m replications run $(subst -,_,$*) $(flags) --check $(several))
	$(launcher) -m replications run $(subst -,_,$*) $(flags)

$(REPORT): report-%: $(INSTALLED)
	$(if $(filter own,$*),$(if $(call given,NAME),,$(error say of which images: make report-own NAME=own-flowers)))
	$(BIN)/python -m replications report $(if $(call given,NAME),$(call quoted,$(NAME)),$(subst -,_,$*)) $(scale)

$(PLAN): plan-%: $(INSTALLED)
	$(if $(call given,MEASURE),$(launcher) -m,$(BIN)/python -m) replications plan $(subst -,_,$*) $(flags) $(if $(call given,MEASURE),--measure)

replicate-% report-% plan-%:
	$(error unknown experiment $*; known: $(EXPERIMENTS))

costs: $(INSTALLED)  ## Write docs/cost-of-the-paper.md: the plans of all experiments
	$(BIN)/python -m replications costs > docs/cost-of-the-paper.md

results: $(INSTALLED)  ## Make results/ again from its records: tables, figures, summary, page
	$(BIN)/python -m replications report --all

claims: $(INSTALLED)  ## Say of each claim, the paper's and ours, whether it is reproduced
	$(BIN)/python -m replications claims

bench: $(INSTALLED)  ## Time steps against plain networks, and the search (SET="--device cuda")
	$(BIN)/python -m replications bench $(SET)

searches: $(INSTALLED)  ## Compare searches at equal evaluations (SET="--run FOLDER --images FOLDER")
	$(BIN)/python -m replications searches $(SET)

feeding: $(INSTALLED)  ## Compare what feeds a search, at search budgets (DATA=FOLDER WORKERS=2)
	$(BIN)/python -m replications feeding $(flags)

wandb-sync: $(INSTALLED)  ## Upload to Weights & Biases what was recorded offline
	$(BIN)/python -m replications wandb-sync

wandb-report: $(INSTALLED)  ## Write a W&B report of the experiment NAME (of results/)
	$(if $(NAME),,$(error say which: make wandb-report NAME=digits))
	$(BIN)/python -m replications wandb-report $(call quoted,$(NAME))

tests = $(BIN)/python -m pytest --numprocesses 2 --dist loadscope --durations 10

test: $(INSTALLED)  ## Run the test suite, but for its slow tests
	$(tests) -m 'not slow' tests

test-all: $(INSTALLED)  ## Run the whole test suite
	$(tests) tests

lint: $(INSTALLED)  ## ruff: lint and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(INSTALLED)  ## pyright
	$(BIN)/pyright

check: lint types test  ## Everything that CI runs

clean:  ## Remove caches (keeps .venv, runs and results)
	rm -rf .pytest_cache .ruff_cache build *.egg-info
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
