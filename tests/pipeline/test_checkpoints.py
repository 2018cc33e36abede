from pathlib import Path

import pytest
import torch

from model.checkpoint import encode
from pipeline.checkpoints import Checkpoints
from storage.errors import StorageConflict
from storage.store import LocalStore


def test_a_changed_checkpoint_is_named_and_the_one_before_serves(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    kept = Checkpoints(store, "demo", "0" * 64)
    assert kept.newest() is None
    made = [encode({"weight": torch.full((50,), float(step))}, {"curve": []}) for step in range(3)]
    for step, data in enumerate(made):
        kept.save(f"stage1-{step:07d}.safetensors", data)
    assert kept.newest() == made[2]
    paths = [path for path in store.list() if path.endswith(".safetensors")]
    assert [path.split("-")[1][:7] for path in paths] == ["0000001", "0000002"]
    for place in (3, 40, len(made[2]) - 1):
        store.put(paths[1], made[2][:place] + bytes([made[2][place] ^ 8]) + made[2][place + 1 :])
        with pytest.raises(StorageConflict, match=r"stage1-0000002\..*: checkpoint is damaged"):
            kept.newest()
    store.delete(paths[1])
    assert kept.newest() == made[1]
