"""Log files are tidied by whoever makes a new one."""

from __future__ import annotations

import os
from pathlib import Path

from flows import logs
from flows.logs import new_log


def test_two_processes_may_tidy_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv("NPHM_LOGS", str(tmp_path))
    old, new = tmp_path / "old.log", tmp_path / "new.log"
    for path in (old, new):
        path.write_text("x")
    os.utime(old, (0, 0))
    listed = [tmp_path / "gone.log", old, new]
    monkeypatch.setattr(Path, "glob", lambda folder, pattern: listed)
    assert new_log("scans").parent == logs.log_folder()
    assert (old.exists(), new.exists()) == (False, True)
