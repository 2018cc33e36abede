"""The entry point of torchrun's processes; training in several of them is in tests/model/test_processes.py."""

from __future__ import annotations

import pytest

from pipeline.train_processes import main


def test_started_by_hand_it_says_how_it_is_started(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("RANK", raising=False)
    assert main(["heads"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "RANK is not set" in line
    assert "torchrun --nproc-per-node N -m pipeline.train_processes WORKSPACE" in line


def test_it_wants_one_workspace(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.setenv(name, "0")
    assert main([]) == 2
    assert "0 words" in capsys.readouterr().err
