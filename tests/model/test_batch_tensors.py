import numpy as np
import pytest
import torch

from model.batch_tensors import BatchTensors, page_locked
from model.units import MM_PER_UNIT


def test_lengths_become_model_units_and_what_is_guessed_counts_less() -> None:
    tensors = BatchTensors("cpu", guessed_weight=0.25)
    assert torch.equal(tensors.lengths(np.array([MM_PER_UNIT, -MM_PER_UNIT], np.float32)), torch.tensor([1.0, -1.0]))
    assert torch.equal(tensors._confidence(np.array([True, False])), torch.tensor([1.0, 0.25]))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="page-locked memory is a GPU's")
def test_page_locked_batches_reach_a_gpu_unchanged() -> None:
    rng = np.random.default_rng(0)
    batch = {"points": rng.normal(size=(8, 1000, 3)).astype(np.float32), "seen": rng.random((8, 1000)) < 0.5}
    locked = page_locked(batch)
    tensors = BatchTensors("cuda", guessed_weight=1.0)
    for name, array in batch.items():
        assert torch.as_tensor(locked[name]).is_pinned()
        assert np.array_equal(tensors.tensor(locked[name]).cpu().numpy(), array)
