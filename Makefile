# parbake's own commands. `make test` and `make demo` install what they need (Debian 13, root).
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

UV := .venv/bin/uv
BIN := .venv/bin

.PHONY: help
help: ## Show the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

.PHONY: proto
proto: ## Regenerate the protobuf modules from src/parbake/containerd/proto/*.proto
	$(BIN)/python -m grpc_tools.protoc --proto_path=src --python_out=src --pyi_out=src src/parbake/containerd/proto/*.proto
