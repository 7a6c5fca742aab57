# Needs Python 3.10 or newer, a C compiler and make; everything else is installed into .venv.
#
#   make quickstart [TEXT=file]   train a small model on a text and let it write; WORK_DIR=directory for its files,
#                                 FRESH=1 to start again
#   make test                     C tests under sanitizers, Python tests, CUDA kernels on the host, doctests
#   make bench                    speed on this machine beside its limits, many minutes; QUICK=1 for less
#   make clean                    remove what these commands made, .venv included
#
# PYTHON=python3.12 make ...      use another Python for .venv

PYTHON ?= python3
VENV := .venv
VPYTHON := $(VENV)/bin/python
PIP := $(VPYTHON) -m pip --quiet --disable-pip-version-check
JOBS := $(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)
SOURCES := setup.py pyproject.toml rwkvtune/__init__.py $(shell find csrc -name '*.[ch]' -o -name '*.cu')

.PHONY: quickstart test bench clean ctest cuda cuda_reference cuda_behaviour tsan aarch64
.SUFFIXES:
.SECONDARY:

quickstart: $(VENV)/.plot
	$(VPYTHON) -m rwkvtune.cli.quickstart $(if $(TEXT),"$(TEXT)") $(if $(WORK_DIR),--work_dir "$(WORK_DIR)") $(if $(FRESH),--fresh)

bench: $(VENV)/.plot
	$(VPYTHON) -m rwkvtune.cli.bench $(if $(QUICK),--quick) --chart bench.png --json bench.json

test: $(VENV)/.test
	@$(MAKE) --no-print-directory -j$(JOBS) ctest
	$(VPYTHON) -m pytest tests/py
	@$(MAKE) --no-print-directory cuda
	$(VPYTHON) -m pytest --doctest-modules rwkvtune || [ $$? -eq 5 ]  # 5: there are none

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache rwkvtune/*.so rwkvtune/*.dylib
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# ---- the environment ----

$(VENV)/.ready: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "rwkvtune needs Python 3.10 or newer, this is " + sys.version.split()[0] + "; name another: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) install 'setuptools>=77' 'numpy>=2.0'
	@touch $@

# $(VENV)/.NAME: this package, built and installed in place, with the optional dependencies called NAME.
$(VENV)/.%: $(VENV)/.ready $(SOURCES)
	@echo 'Building rwkvtune into $(VENV), about a minute the first time'
	$(PIP) install --no-build-isolation -e '.[$*]'
	@touch $@

# ---- C tests: each tests/c/test_*.c is a program, linked with everything but py/ and cuda/ ----

CWARN := -Wall -Wextra -Wshadow -Werror=implicit-function-declaration -Werror=int-conversion
CBASE := -std=c11 -D_GNU_SOURCE -g $(CWARN) -Icsrc -I.
SANITIZE := -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer
CFLAGS_TEST := -O1 -ffp-contract=fast -fno-math-errno -fno-trapping-math $(SANITIZE)
BUILD := build/ctest
COBJECTS := $(patsubst %.c,$(BUILD)/%.o,$(filter-out csrc/py/%,$(shell find csrc -name '*.c')))
CTESTS := $(patsubst tests/c/%.c,$(BUILD)/%,$(wildcard tests/c/test_*.c))

ctest: $(CTESTS)
	@for t in $(CTESTS); do echo "== $$t"; $$t || exit 1; done

ifneq ($(filter x86_64 amd64,$(shell uname -m)),)
$(BUILD)/csrc/kernels/isa_avx2.o: TIER := -mavx2 -mfma -mf16c
$(BUILD)/csrc/kernels/isa_avx512.o: TIER := -mavx512f -mavx512vl -mavx512bw -mavx512dq -mfma -mf16c -mavx2
$(addprefix $(BUILD)/csrc/kernels/,isa_avx512vnni.o isa_amx.o): TIER := -mavx512f -mavx512vl -mavx512bw -mavx512dq -mavx512vnni -mfma -mf16c -mavx2
endif

$(BUILD)/%.o: %.c Makefile | $(VENV)/.ready
	@mkdir -p $(@D)
	@echo 'cc $<'
	@$(CC) $(CBASE) $(CFLAGS_TEST) $(TIER) -MMD -MP -c $< -o $@

$(BUILD)/libcore.a: $(COBJECTS)
	@rm -f $@
	@$(AR) rcs $@ $^

$(BUILD)/test_%: $(BUILD)/tests/c/test_%.o $(BUILD)/libcore.a
	@$(CC) $(SANITIZE) $^ -lpthread -lm -o $@

# The CUDA kernels on the host (tests/cuda_host/README.md): the tests that a machine with a GPU runs on it, in two processes,
# since the device that they see is one thread.
cuda: $(VENV)/.test
	RWKVTUNE_CUDA=host $(VPYTHON) setup.py -q build_ext
	@$(MAKE) --no-print-directory -j$(JOBS) cuda_reference cuda_behaviour

cuda_reference: TESTS := ops_numpy golden_ops golden_model golden_train numerics cuda_golden
cuda_behaviour: TESTS := cuda cuda_half cuda_products cuda_attention_split cuda_runs gpu_bench
cuda_reference cuda_behaviour:
	RWKVTUNE_TEST_CORE=$$(ls build/cuda_host/_rwkvcore*.so) $(VPYTHON) -m pytest -p no:cacheprovider -k cuda $(TESTS:%=tests/py/test_%.py)

# The thread pool under ThreadSanitizer.
tsan:
	@mkdir -p build/tsan
	$(CC) $(CBASE) -O1 -fsanitize=thread tests/c/test_parallel.c csrc/base/parallel.c csrc/base/arena.c csrc/base/cpu.c -lpthread -lm -o build/tsan/test_parallel
	build/tsan/test_parallel

# The cpu backend on another architecture: cross-compiled, run by an emulator where there is one.
ARM_CC := aarch64-linux-gnu-gcc
aarch64:
	@mkdir -p build/aarch64
	for t in test_ops_cpu test_gemm; do \
	    $(ARM_CC) -std=c11 -D_GNU_SOURCE -O2 -ffp-contract=fast -fno-math-errno -fno-trapping-math $(CWARN) -Werror -Icsrc -I. -static \
	        tests/c/$$t.c $(shell find csrc/kernels csrc/ops -name '*.c') csrc/base/err.c csrc/base/memory.c csrc/base/arena.c csrc/base/cpu.c csrc/base/parallel.c \
	        csrc/base/rng.c -lpthread -lm -o build/aarch64/$$t || exit 1; \
	    if command -v qemu-aarch64 >/dev/null; then qemu-aarch64 build/aarch64/$$t || exit 1; \
	    else echo 'compiled; not run: no qemu-aarch64 here'; fi; done

-include $(COBJECTS:.o=.d) $(patsubst $(BUILD)/%,$(BUILD)/tests/c/%.d,$(CTESTS))
