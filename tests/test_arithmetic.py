"""Device, dtype and processes follow from what the machine can do, and a CPU that only emulates 16 bit is told."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from uniedit_hf.arithmetic import best_arithmetic, bfloat16_time, cpu_arithmetic, one_thread


AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
ON_X86 = pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"), reason="needs x86")
TWO_CONFIGS = """
from uniedit_hf import UniEditConfig
from uniedit_hf.arithmetic import cpu_arithmetic
for _ in range(2):
    UniEditConfig(output_dir="unused", bf16=True, use_cpu=True, report_to="none")
print(cpu_arithmetic())
"""


def in_a_process(program: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", program], env=os.environ | environment, capture_output=True, text=True, check=True
    )


def test_the_choice_follows_from_the_measured_factor():
    chosen = cpu_arithmetic()
    assert chosen.device == "cpu" and chosen.jobs in (1, 2)
    assert (chosen.dtype == torch.bfloat16) == (bfloat16_time() < 0.8)
    assert chosen.dtype_name in str(chosen) and "times as long as float32" in str(chosen)
    if not torch.cuda.is_available() and not torch.backends.mps.is_available():
        assert best_arithmetic() == chosen


def test_autocast_has_the_chosen_dtype():
    with cpu_arithmetic().autocast():
        product = torch.ones(4, 4) @ torch.ones(4, 4)
    assert product.dtype == cpu_arithmetic().dtype


def test_one_thread_gives_the_threads_back():
    before = torch.get_num_threads()
    with one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before


@ON_X86
def test_without_16_bit_instructions_float32_is_chosen_and_bf16_warns_once():
    found = in_a_process(TWO_CONFIGS, **AVX2)
    assert found.stdout.startswith("float32 on cpu") and "AVX2" in found.stdout
    assert found.stderr.count("no fast 16-bit arithmetic") == 1 and "Set bf16=False" in found.stderr
