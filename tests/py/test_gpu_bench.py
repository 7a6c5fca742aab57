"""bench/gpu.py and bench/gpu_report.py without a GPU: predictions, tables, and that every name they use is there."""

import importlib.util
import inspect
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import CUDA, core

ROOT = Path(__file__).resolve().parents[2]


def script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "bench" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


gpu, report = script("gpu"), script("gpu_report")


def test_predictions():
    from rwkvtune import RWKV, ModelConfig

    model = RWKV(ModelConfig(model_type="x070", n_layer=2, n_embd=128, vocab_size=70))
    ours = {name: value.size for name, value in model.named_parameters().items() if value.squeeze().ndim == 2 and not name.endswith("r_k")}
    layers, head = gpu.multiplied(2, 128, 70)
    assert layers + head == sum(ours.values()) - ours["emb.weight"]
    assert 2.7e-3 < gpu.decoding_seconds(32, 4096, share=1) < 3.2e-3  # 14 GB at 4.8 TB/s
    assert gpu.decoding_seconds(32, 4096, active=0.2) < 0.8 * gpu.decoding_seconds(32, 4096)
    assert gpu.decoding_seconds(32, 4096, 0.5625) < 0.3 * gpu.decoding_seconds(32, 4096)
    assert 2e-3 < sum(gpu.wkv7_seconds()) < 5e-3
    assert gpu.training_flops(24, 2048) == pytest.approx(6 * 1.4e9, rel=0.1)


def test_operations_take_what_they_are_given(monkeypatch):
    """Shapes and fields of every operation that is timed, without running it on anything large."""
    asked = []

    def run_op(backend, op, direction, args, times):
        fields = dict(core.op_fields(op))
        assert backend == "cuda-bf16" and direction in ("fwd", "bwd") and set(args) <= set(fields), (op, set(args) - set(fields))
        asked.append(op)
        return [1.0] * times

    monkeypatch.setattr(core, "run_op", run_op)
    gpu.wkv7_times(1, 32, 64), gpu.matmul_rate(32), gpu.bandwidth(1 << 13), gpu.attention_seconds(20, 2), gpu.layernorm_seconds(3, 8)
    for more in ({}, {"form": "int8"}, {"form": "int4"}, {"active": 0.2}):
        gpu.op_seconds("linear", "fwd", gpu.product_args(1, 64, 32, **more))
    assert set(asked) == {"wkv7", "linear", "add", "attention", "layernorm"}
    x = gpu.product_args(1, 4096, 8, active=0.2)["x"]
    assert 0.15 < np.mean(x != 0) < 0.25


def test_the_table_says_what_was_missed_and_what_failed():
    def fine(known):
        yield gpu.Row("one", 1.25, 2.0, "ms", "<= 2", True)
        yield gpu.Row("two", 3.0, None, "ms", "<= 2", False)

    def broken(known):
        yield gpu.Row("three", 1.0, 1.0, "ms")
        raise RuntimeError("no such thing")

    rows = gpu.measure({}, (fine, broken))
    text = "\n".join(gpu.table({"tests": True, "memcheck": False}, rows))
    assert len(rows) == 4 and "tests" in text and "FAILED" in text and "MISSED" in text and "RuntimeError: no such thing" in text
    assert rows[-1].met is False and "after three" in rows[-1].what


def test_tests_and_peers_exist():
    assert all((ROOT / path).exists() for path in gpu.TESTS)
    assert sum(gpu.STAGES.values()) + 2 * gpu.STAGES["sanitizer"] < 8 * 60
    for python in ("/no/such/program", *([] if importlib.util.find_spec("torch") else [sys.executable])):
        assert gpu.peers(python)["missing"]
    for group in (gpu.measure_operations, gpu.measure_training, gpu.measure_decoding):
        assert inspect.isgeneratorfunction(group)


@pytest.mark.skipif(not CUDA, reason="no CUDA device, and not the build of tests/cuda_host")
def test_models_that_are_timed_run_cuda():
    tokens, memory = gpu.training(1, 64, 1, 16, steps=3, vocab=70)
    assert tokens > 0 and memory > 0
    for precision in ("bf16", "int8"):
        model = gpu.model_of(1, 64, precision, vocab=70)
        assert gpu.decoding(model, 2) > 0
    model = gpu.model_of(1, 64, vocab=70)
    assert gpu.prefill(model, 20) > 0
    gpu.activate(model, 0.25)
    key, bias = (model.named_parameters()[f"blocks.0.{name}"] for name in ("ffn.key.weight", "ln2.bias"))
    assert np.mean(key @ bias > 0) == 0.25


# ---- the compiler's report ------------------------------------------------------------------------------------------

PTXAS = """ptxas info    : Compiling entry function '_Z3oneIfEvPT_' for 'sm_90'
ptxas info    : Function properties for _Z3oneIfEvPT_
    24 bytes stack frame, 20 bytes spill stores, 28 bytes spill loads
ptxas info    : Used 90 registers, used 1 barriers, 32768 bytes smem
ptxas info    : Compiling entry function '_Z3twov' for 'sm_90'
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 32 registers, used 0 barriers
"""
SASS = """.text._Z3oneIfEvPT_:
        /*0000*/                   LDG.E.128 R4, [R2] ;
        /*0010*/                   LDG.E R4, [R2] ;
        /*0020*/                   HMMA.16816.F32.BF16 R4, R8, R2, R4 ;
        /*0030*/                   STG.E.128 [R2], R4 ;
        /*0040*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;
.text._Z3twov:
        /*0000*/                   LDGSTS.E.128 [R1], [R2] ;
"""


def test_report_reads_the_compiler():
    facts, counts = report.compiler_facts(PTXAS), report.instruction_counts(SASS)
    assert facts == {"_Z3oneIfEvPT_": (90, 20, 32768), "_Z3twov": (32, 0, 0)}
    assert {what: n for what, n in counts["_Z3oneIfEvPT_"].items() if n} == {"LDG.128": 1, "LDG": 1, "HMMA": 1, "STG.128": 1, "BAR": 1}
    assert {what: n for what, n in counts["_Z3twov"].items() if n} == {"cp.async": 1}
    assert [report.warps_of(n) for n in (32, 90, 128, 255)] == [64, 21, 16, 8]
    lines = list(report.table([(name, "a.cu", facts[name], counts[name]) for name in facts]))
    assert len(lines) == 4 and lines[2].startswith("| `_Z3oneIfEvPT_` | 90 | 20 | 32768 | 21 | 1 | 1 |")


@pytest.mark.skipif(not report.tool("nvcc"), reason="no nvcc")
def test_report_of_one_file():
    found = report.kernels_of(Path("csrc/ops/norm/add_cuda.cu"), os.environ.get("RWKVTUNE_CUDA_ARCHS", "90").split(";")[0], report.tool("nvcc"), report.tool("nvdisasm"), None)
    assert {name for name, *_ in found} == {f"rk_map_kernel<{kind}, 2, 1, Add>" for kind in ("float", "bf16", "fp16")}
    assert all(facts[0] > 0 and facts[1] == 0 for _, _, facts, _ in found)
