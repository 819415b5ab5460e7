"""Peaks by the names that JAX gives devices."""

import pytest

from research.analysis import hardware


@pytest.mark.parametrize(
    ("kind", "dtype", "teraflops", "gigabytes"),
    [
        ("NVIDIA H100 80GB HBM3", "bfloat16", 989.4, 80),
        ("NVIDIA H100 PCIe", "bfloat16", 756, 80),
        ("NVIDIA H100 80GB HBM3", "float32", 66.9, 80),
        ("NVIDIA A100-SXM4-40GB", "tensorfloat32", 156, 40),
        ("NVIDIA A100-SXM4-80GB", "bfloat16", 312, 80),
        ("NVIDIA A100 80GB PCIe", "bfloat16", 312, 80),
        ("NVIDIA H200", "bfloat16", 989.4, 141),
        ("NVIDIA B200", "bfloat16", 2250, 180),
        ("Tesla T4", "float16", 65, 16),
        ("TPU v4", "bfloat16", 275, 32 * 1.073741824),
        ("TPU v5 lite", "bfloat16", 197, 16 * 1.073741824),
        ("TPU v5", "bfloat16", 459, 95 * 1.073741824),
        ("TPU v6 lite", "bfloat16", 918, 32 * 1.073741824),
    ],
)
def test_a_kind_has_the_peak_of_its_datasheet(kind, dtype, teraflops, gigabytes):
    assert hardware.peak(kind, dtype) == pytest.approx(teraflops * 1e12)
    assert hardware.memory(kind) == pytest.approx(gigabytes * 1e9)


def test_what_nobody_published_is_unknown():
    assert hardware.peak("TPU v5 lite", "float32") is None
    assert hardware.peak("Tesla T4", "bfloat16") is None
    assert hardware.peak("cpu", "float32") is None
    assert hardware.memory("cpu") is None


def test_the_roof_of_a_cpu_is_measured_once():
    roof = hardware.measured_roof()
    assert 1e8 < roof < 1e16
    assert hardware.measured_roof() == roof
