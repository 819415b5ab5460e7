"""The product of a projection and its own rule for gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.models.layers import product


def operands(dtype, inputs, outputs):
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = (2, 5, inputs), (inputs, outputs), (2, 5, outputs)
    return [jax.random.normal(key, shape).astype(dtype) for key, shape in zip(keys, shapes, strict=True)]


@pytest.mark.parametrize(("inputs", "outputs"), [(16, 48), (48, 16)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_it_and_its_gradients_are_sums_in_float32_rounded_once(dtype, inputs, outputs):
    x, kernel, d = operands(dtype, inputs, outputs)
    found, pull = jax.vjp(product, x, kernel)
    wide, wide_pull = jax.vjp(jnp.matmul, *(leaf.astype(jnp.float32) for leaf in (x, kernel)))
    pairs = zip((found, *pull(d)), (wide, *wide_pull(d.astype(jnp.float32))), strict=True)
    step = float(jnp.finfo(dtype).eps)
    for ours, theirs in pairs:
        assert ours.dtype == jnp.dtype(dtype)
        np.testing.assert_allclose(ours.astype(np.float32), theirs, rtol=step, atol=1e-5)


def test_on_a_cpu_no_product_has_a_narrow_result():
    x, kernel, d = operands("bfloat16", 16, 48)
    text = jax.jit(lambda *args: jax.vjp(product, *args)[1](d)).lower(x, kernel).as_text()
    results = [line.rpartition("->")[2] for line in text.splitlines() if "stablehlo.dot_general" in line]
    assert len(results) == 2
    assert all("xf32>" in result for result in results)


def test_logits_of_narrow_states_are_float32():
    x, kernel, _ = operands("bfloat16", 16, 48)
    assert product(x, kernel, jnp.float32).dtype == jnp.dtype("float32")
