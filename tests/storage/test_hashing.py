"""Hashes of tensors."""

from __future__ import annotations

import pytest
import torch

from eigenexp.storage.hashing import tensor_sha256


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64, torch.bool])
def test_tensor_hash_depends_on_values_shape_and_dtype(dtype):
    tensor = torch.ones(4, dtype=dtype)
    assert tensor_sha256(tensor) == tensor_sha256(tensor.clone())
    assert tensor_sha256(tensor) != tensor_sha256(tensor.reshape(2, 2))
    assert tensor_sha256(tensor) != tensor_sha256(tensor.to(torch.complex128))
    assert tensor_sha256(tensor[0]) != tensor_sha256(tensor[:1])
