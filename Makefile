# Each target sets up what it needs first. See scripts/ for what they do.
ENV := scripts/env.sh
.PHONY: setup setup-toolkit demo test test-toolkit test-slow lint bench clean

setup:
	scripts/setup.sh

setup-toolkit:
	scripts/setup.sh --extra vlm --extra tensorrt_rtx

demo: setup
	scripts/clean_shared_memory.py
	$(ENV) edge-perception demo

test: setup
	scripts/clean_shared_memory.py
	$(ENV) python -m pytest $(PYTEST_ARGS)

# The tests that `make test` skips for want of torch or TensorRT for RTX.
test-toolkit: setup-toolkit
	$(ENV) python -m pytest $$(grep -rlE 'importorskip\(.(torch|tensorrt_rtx)' test --include='test_*.py') $(PYTEST_ARGS)

test-slow: setup
	$(ENV) python -m pytest -m slow --timeout=1800 $(PYTEST_ARGS)

lint: setup
	$(ENV) ruff check .
	$(ENV) ruff format --check .
	$(ENV) mypy

bench: setup
	scripts/clean_shared_memory.py
	$(ENV) edge-perception bench --all --out docs/benchmarks/graph.json
	$(ENV) python -m benchmarks.frames.vs_dds --out docs/benchmarks/frames_cpu.json
	$(ENV) python -m benchmarks.frames.soak --minutes 10 --out docs/benchmarks/frames_cpu.json

clean:
	rm -rf .venv build install log out .mypy_cache .pytest_cache .ruff_cache .hypothesis
