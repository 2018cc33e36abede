"""The configuration survives its file, and its errors name key, value and what is allowed."""

from __future__ import annotations

import pytest

from pipeline.config import PRESETS, PipelineConfig, config_from_toml, config_to_toml, preset_config
from storage.errors import ConfigError


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_survive_their_file(preset):
    config = preset_config(preset)
    assert config.preset == preset
    assert config_from_toml(config_to_toml(config)) == config


def test_the_small_preset_is_the_default():
    assert preset_config("small") == PipelineConfig()


def test_what_is_left_out_is_as_in_the_preset():
    config = config_from_toml(b'preset = "demo"\n[train.training.stage1]\nclip = 0.5\n')
    demo = preset_config("demo")
    assert config.train.training.stage1.clip == 0.5
    assert config.train.training.stage1.steps == demo.train.training.stage1.steps
    assert config.sample == demo.sample


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("[clean]\nvoxel_m = 3", "x.toml: clean.voxel_m: is no known key (found 3); did you mean voxel_mm?"),
        ("[splits]\nq = 3", "x.toml: splits.q: is no known key (found 3); allowed are held_out, held_out_ids"),
        (
            "[clean]\nvoxel_mm = 30",
            "x.toml: clean.voxel_mm: input should be less than or equal to 5 (found 30); correct this key",
        ),
        (
            'preset = "big"',
            "x.toml: preset: input should be 'demo', 'small' or 'paper' (found 'big'); correct this key",
        ),
        (
            'preset = ["demo"]',
            "x.toml: preset: input should be 'demo', 'small' or 'paper' (found ['demo']); correct this key",
        ),
        (
            'model_name = "a/b"',
            "x.toml: model_name: takes up to 64 letters, digits and ._-, the first a letter or digit (found 'a/b');"
            " correct this key",
        ),
        (
            '[service]\nheld_out_set = ""',
            "x.toml: service.held_out_set: takes up to 64 letters, digits and ._-, the first a letter or digit"
            " (found ''); correct this key",
        ),
        (
            '[service]\nnotify_url = "http://[::1/"',
            "x.toml: service.notify_url: is no http:// or https:// address, input should be a valid url, invalid ipv6"
            " address (found 'http://[::1/'); correct this key",
        ),
        (
            '[service]\nnotify_url = "file:///etc/passwd"',
            "x.toml: service.notify_url: is no http:// or https:// address, url scheme should be 'http' or 'https'"
            " (found 'file:///etc/passwd'); correct this key",
        ),
        (
            "schema_version = 3",
            "x.toml: schema_version: is not known (found 3, this version reads 1 to 2); use the nphm that made the"
            " workspace",
        ),
    ],
)
def test_errors_name_the_key(text, line):
    with pytest.raises(ConfigError) as error:
        config_from_toml(text.encode(), "x.toml")
    assert str(error.value) == line


@pytest.mark.parametrize("data", [b"a = ", b"\xff", b"[a", b"preset = 1\npreset = 2"])
def test_what_is_no_toml(data):
    with pytest.raises(ConfigError, match="is no TOML file"):
        config_from_toml(data)


def test_thresholds_lie_outside_the_digest():
    config = PipelineConfig()
    loose = config.model_copy(
        update={"thresholds": config.thresholds.model_copy(update={"clean": config.thresholds.clean})}
    )
    assert loose.digest_of_step("clean") == config.digest_of_step("clean")
    coarse = config.model_copy(update={"clean": config.clean.model_copy(update={"voxel_mm": 2.0})})
    assert coarse.digest_of_step("clean") != config.digest_of_step("clean")
    assert coarse.digest_of_step("sample") == config.digest_of_step("sample")
    assert PipelineConfig(seed=1).digest_of_step("sample") != config.digest_of_step("sample")
