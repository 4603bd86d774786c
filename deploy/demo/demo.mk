# Set-up and demo targets; the root Makefile includes this file and sets CARGO and PROFILE.

DEMO_BIN = $(or $(CARGO_TARGET_DIR),target)/$(PROFILE)/warmroute-demo
DEMO_ARGS ?=

# What the demo and the end-to-end tests need. The markers make a second `make setup` free.
target/tools/envoy/.complete: deploy/setup/envoy.sh
	deploy/setup/envoy.sh
	@touch $@

target/tools/pyzmq/.complete: deploy/setup/pyzmq.sh
	deploy/setup/pyzmq.sh
	@touch $@

target/tokenizers/qwen2.5/.complete: deploy/setup/tokenizer.sh
	deploy/setup/tokenizer.sh
	@touch $@

.PHONY: demo-build demo demo-up demo-down

demo-build:
	$(CARGO) build --locked --profile $(PROFILE) -p warmroute -p warmroute-engine-sim -p warmroute-demo

demo: setup demo-build ## The main job, live: engines, Envoy and picker under load; ends with a table and an HTML report.
	@$(DEMO_BIN) run $(DEMO_ARGS)

demo-up: setup demo-build ## Leaves engines, Envoy and picker running on this machine, to try by hand.
	@$(DEMO_BIN) up $(DEMO_ARGS)

demo-down: ## Stops what demo-up left running.
	@$(DEMO_BIN) down
