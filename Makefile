# Warmroute: every command that a developer needs. `make help` lists them.

CARGO ?= cargo
PROFILE ?= quick
export WARMROUTE_TOKENIZERS ?= $(CURDIR)/target/tokenizers

.DEFAULT_GOAL := help

.PHONY: help
help: ## Lists the targets.
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-18s %s\n", $$1, $$2}'

include deploy/demo/demo.mk

.PHONY: setup
setup: target/tokenizers/qwen2.5/.complete target/tools/envoy/.complete target/tools/pyzmq/.complete ## Fetches what tests and demo need: Envoy, a tokenizer, libzmq.

.PHONY: test
test: setup lint ## Everything that must hold: lint, unit, property, parity and end-to-end tests.
	$(CARGO) test --workspace --locked
	$(MAKE) --no-print-directory custom

# Not part of `make test`: it installs 6 GB. deploy/setup/vllm.sh reads VLLM_DIR and VLLM_VERSION.
# VLLM_ARGS="--model hybrid" (sliding windows) and "--model ranks" (data-parallel ranks) run other engines.
VLLM_ARGS ?=

.PHONY: test-vllm
test-vllm: setup ## Two real vLLM engines on the CPU behind Envoy and the picker: predicted against delivered.
	deploy/setup/vllm.sh
	$(CARGO) build --locked --profile $(PROFILE) -p warmroute-tests --bins
	@$(CARGO) run --quiet --locked --profile $(PROFILE) -p warmroute-tests --bin vllm-truth -- --vllm "$$(deploy/setup/vllm.sh)" $(VLLM_ARGS)

# deploy/setup/kube.sh reads KUBEBUILDER_ASSETS, GO and GOPROXY. KUBE_ARGS="--only pods --rate 50" runs less.
KUBE_ARGS ?=
# Unoptimised, as `make test` has built most of it; it is fast enough.
KUBE_PROFILE ?= dev

.PHONY: setup-kube
setup-kube: setup ## A Kubernetes API server with etcd (built once, seven minutes of a CPU), helm, resource definitions.
	deploy/setup/kube.sh

.PHONY: test-kube
test-kube: setup-kube ## Pickers with the chart's rights beside a real API server and Envoy, while pods and pickers come and go.
	$(MAKE) --no-print-directory charts
	$(CARGO) build --locked --profile $(KUBE_PROFILE) -p warmroute-tests --bins
	@$(CARGO) run --quiet --locked --profile $(KUBE_PROFILE) -p warmroute-tests --bin kube-truth -- --kube "$$(deploy/setup/kube.sh)" $(KUBE_ARGS)

# A workspace of its own, because Dynamo's crate pins an older tokio.
DYNAMO_BUILD = --manifest-path benches/dynamo/Cargo.toml --target-dir $(or $(CARGO_TARGET_DIR),target)/dynamo

# Not part of `make test`: it takes two minutes of load and needs Prometheus.
OBSERVABILITY = $(or $(CARGO_TARGET_DIR),target)/debug/observability

.PHONY: test-observability
test-observability: setup ## Every expression of dashboards and alerts, asked of a real Prometheus that scrapes pickers.
	deploy/setup/prometheus.sh
	$(CARGO) build --locked -p warmroute-tests -p warmroute-engine-sim --bins
	@$(OBSERVABILITY) test

.PHONY: dashboards
dashboards: ## Writes the dashboards of deploy/observability, and a table of the docs, from their sources.
	$(CARGO) run --locked -p warmroute-tests --bin observability -- make

.PHONY: manifests
manifests: ## Renders deploy/kubernetes from the chart; needs helm.
	deploy/kubernetes/render.sh

# With helm, which `make test-kube` sets up. What needs none of it is in `make test`.
.PHONY: charts
charts: target/tools/envoy/.complete ## The chart: linted, rendered in every way, and held against rules; needs helm.
	deploy/kubernetes/render.sh --check
	$(CARGO) clippy --locked -p warmroute-tests --features helm --test manifests -- -D warnings
	$(CARGO) test --locked -p warmroute-tests --features helm --test manifests

# The image. IMAGE names it, PUSH=1 pushes it; else it is written to a file that skopeo and containerd take.
IMAGE ?= warmroute:dev
PLATFORMS ?= linux/amd64,linux/arm64
IMAGE_OUTPUT = $(if $(PUSH),--push --sbom=true --provenance=mode=max,--output type=oci,dest=target/image/warmroute.oci.tar)

.PHONY: image
image: ## The image for both architectures, cross-compiled; needs Docker with buildx (docs/kubernetes/image.md).
	mkdir -p target/image
	docker buildx build --platform $(PLATFORMS) --tag $(IMAGE) --build-arg COMMIT=$$(git rev-parse HEAD) $(IMAGE_OUTPUT) .

.PHONY: test-image
test-image: ## The image's build steps without a container engine, without LTO; and what they make.
	PROFILE=$(PROFILE) deploy/image/test.sh

.PHONY: sbom
sbom: ## A CycloneDX list of what is linked into the picker: target/image/warmroute.cdx.json.
	deploy/image/sbom.sh

.PHONY: lint
lint: ## Formatting, clippy and rustdoc with warnings as errors, shell scripts.
	$(CARGO) fmt --all --check
	for script in deploy/setup/*.sh deploy/kubernetes/*.sh deploy/image/*.sh tests/fuzz/run.sh .ci/run; do sh -n $$script || exit 1; done
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	$(CARGO) fmt --manifest-path benches/dynamo/Cargo.toml --check
	$(CARGO) clippy --locked $(DYNAMO_BUILD) --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps --locked
	@# A workspace with a lock file of its own, which `make fuzz` builds.
	$(CARGO) metadata --locked --format-version 1 --manifest-path tests/fuzz/libfuzzer/Cargo.toml >/dev/null

# The template is a workspace of its own. It gets our lock file, profiles and target folder, so that what is built
# already isn't built again.
CUSTOM = --manifest-path deploy/custom/Cargo.toml
CUSTOM_BUILD = --config Cargo.toml $(CUSTOM) --target-dir $(or $(CARGO_TARGET_DIR),target)

.PHONY: custom
custom: ## The template of a scorer crate (deploy/custom) by itself, against the contract alone.
	cp Cargo.lock deploy/custom/Cargo.lock
	$(CARGO) fmt $(CUSTOM) -p acme -p acme-picker --check
	$(CARGO) clippy $(CUSTOM_BUILD) -p acme --all-targets -- -D warnings
	$(CARGO) test $(CUSTOM_BUILD) -p acme

.PHONY: proto
proto: ## Makes the Rust code of our own protobuf again (crates/warmroute/src/replicas/pb.rs); a test compares it.
	WRITE_PROTO=1 $(CARGO) test --locked -p warmroute-tests --test protobuf

.PHONY: fuzz
fuzz: ## Fuzzes what reads an engine's bytes, on stable Rust: FUZZ_SECONDS (60) per target.
	tests/fuzz/run.sh

.PHONY: bench
bench: setup ## What each step costs, as ratios to bare baselines; writes target/bench/summary.json.
	$(CARGO) run --locked --profile $(PROFILE) -p warmroute-benches --bin warmroute-bench


.PHONY: bench-dynamo
bench-dynamo: ## The KV index beside NVIDIA Dynamo's, in one process.
	$(CARGO) run --locked --release $(DYNAMO_BUILD) --bin dynamo-duel -- --10m
	$(CARGO) run --locked --release $(DYNAMO_BUILD) --bin memory
