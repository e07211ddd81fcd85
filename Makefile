# make test needs nothing beyond Go. What wants a C compiler (the race
# detector), redis-cli and the like runs where it is installed and is named
# where it is skipped.

GO      ?= go
PKGS    := ./...
TAGS    := chaos,process
export CGO_ENABLED ?= $(shell $(GO) env CGO_ENABLED)

.PHONY: all build check test lint fmt-check generated race race-run unit process chaos chaos-short sim soak load seeds readme bench bench-peers profile fuzz mutants mutants-short

all: check

build: ## the product, without cgo
	CGO_ENABLED=0 $(GO) build -o bin/flotilla ./cmd/flotilla

check: lint unit ## the quick loop

test: build unit race mutants-short process chaos-short readme ## everything CI runs but lint

lint: fmt-check generated ## formatting, vet, staticcheck (of all build tags), generated code
	$(call timed,vet,$(GO) vet $(PKGS) && $(GO) vet -tags $(TAGS) ./internal/chaos ./node ./tests/...)
	$(call timed,staticcheck,$(GO) tool staticcheck $(PKGS) && $(GO) tool staticcheck -tags $(TAGS) ./internal/chaos ./node ./tests/...)

fmt-check:
	@out=$$(gofmt -l $$(git ls-files '*.go')); test -z "$$out" || { echo "not gofmt-ed: $$out"; exit 1; }

generated:
	$(call timed,generated,.ci/generated)

unit: ## every package's tests, seeds of the simulation included
	$(call timed,unit,$(GO) test -timeout 10m $(PKGS))

race: ## the same code under the race detector, smaller
	@if $(GO) env CC | xargs which >/dev/null 2>&1; then \
	  $(MAKE) --no-print-directory race-run; \
	else echo "SKIPPED race: no C compiler"; fi

race-run:
	$(call timed,race,CGO_ENABLED=1 $(GO) test -race -short -timeout 15m $(PKGS))

process: build ## real processes: kill -9, restart, load
	$(call timed,process,$(GO) test -count=1 -timeout 12m -tags process ./tests/process/...)

# The kinds of faults and the two networks are in tests/chaos/doc.go.
CHAOS   = $(GO) test -count=1 -tags chaos ./tests/chaos
NETWORK ?= auto

chaos: ## faults drawn from SEED, on NODES processes, for DURATION: make chaos DURATION=30m NODES=5 SEED=7
	$(CHAOS) -v -timeout 24h -run '^(TestChaos|TestMajoritiesRing|TestDiskReallyFull)$$' -duration $(or $(DURATION),30m) -nodes $(or $(NODES),3) \
	  -chaos.seed $(or $(SEED),0) -chaos.network $(NETWORK)

chaos-short: ## each fault once, on real processes, and half a minute of drawn ones
	$(call timed,chaos-short,$(GO) test -tags chaos ./internal/chaos && $(CHAOS) -timeout 10m -run '^(TestFaults|TestMajoritiesRing|TestProxies|TestSchedule|TestFollowerNotices|TestChaos)$$' -duration 30s -chaos.seed 4711 -chaos.network $(NETWORK))

sim: ## replay a seed of the simulation of clusters: make sim SEED=7
	@$(GO) run ./tests/sim/run $(if $(SEED),-seed $(SEED),-first $(or $(FIRST),1) -seeds $(or $(SEEDS),1000))

soak: ## seeds of the simulation until told to stop, or for DURATION; what failed is kept in sim-failures
	$(GO) run ./tests/sim/run -first $(or $(FIRST),1000000) $(if $(SEEDS),-seeds $(SEEDS)) $(if $(DURATION),-for $(DURATION))

load: build ## DURATION of full load with flat memory, and the long tests at full size
	$(GO) test -count=1 -timeout 3h -tags process ./tests/process -v \
	  -run '^(TestSoak|TestAwayUnderLoad|TestAStoppedNodeCostsNoMemory|TestManyKeys|TestManyGroups|TestRedisBenchmarkOnACluster|TestIncrementsThroughEverything)$$' -soak $(or $(DURATION),10m)
	$(GO) test -count=1 -timeout 1h ./node -run '^TestTenNodes$$' -v -scale-bytes 1000000000

readme: build ## the README's commands, as a new user would run them
	$(call timed,readme,$(GO) test -count=1 -timeout 5m -tags process ./tests/readme/...)

seeds: ## more seeds of the one-group simulation: make seeds SEEDS=5000
	$(GO) test -count=1 -timeout 60m ./raft/rafttest -run Simulation -seeds $(or $(SEEDS),5000)

mutants: ## planted bugs, each of which a named test must find; MUTANTS=REGEXP picks
	$(GO) run ./tests/mutants -run '$(MUTANTS)'

mutants-short: ## three fast ones: the machinery works
	$(call timed,mutants-short,$(GO) run ./tests/mutants -run '^(vote-not-durable|old-term-counted|learner-counted)$$')

fuzz: ## each fuzz target for FUZZTIME
	.ci/fuzz $(or $(FUZZTIME),30s)

bench: build ## a cluster of three processes under load
	.ci/bench

profile: ## make the profile by which the binary is optimised anew
	.ci/profile

bench-peers: build ## ours and etcd's, side by side
	cd tests/peers && $(GO) run . $(BENCH_FLAGS)


# timed NAME,COMMAND runs the command and prints how long it took.
define timed
@start=$$(date +%s); echo "== $(1)"; $(2); code=$$?; \
 echo "== $(1): $$(( $$(date +%s) - start )) s"; exit $$code
endef
