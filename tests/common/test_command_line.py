"""Options with several values before overrides, and the folders that tools write to."""

from __future__ import annotations

import argparse

import pytest

from kd_det.common.command_line import UpToOverrides, add_config_file, output_folder, parse_arguments
from kd_det.common.errors import SetupError

OVERRIDES = ["MODEL.DEVICE", "cpu", "OUTPUT_DIR", "out"]


def parsed(*arguments):
    parser = argparse.ArgumentParser()
    parser.add_argument("--image", nargs="+", action=UpToOverrides, default=["none"])
    parser.add_argument("--device")
    add_config_file(parser)
    parser.add_argument("opts", nargs=argparse.REMAINDER)
    args = parse_arguments(parser, arguments)
    return args.image, args.device, args.opts


@pytest.mark.parametrize(
    ("arguments", "images", "opts"),
    [
        (["--image", "a.png", "b.png", *OVERRIDES], ["a.png", "b.png"], OVERRIDES),
        (["--image", "a.png", "--device", "cpu", *OVERRIDES], ["a.png"], OVERRIDES),
        (["--image", "a.png", *OVERRIDES[:2], "--image", "b.png", *OVERRIDES[2:]], ["a.png", "b.png"], OVERRIDES),
        (["--image", "a.png", "KD.TERMS", "()"], ["a.png"], ["KD.TERMS", "()"]),
        (["--image", "a.png", "MODEL.DEVISE", "cpu"], ["a.png"], ["MODEL.DEVISE", "cpu"]),  # refused by its name later
        (["--image", "a.png"], ["a.png"], []),
        (OVERRIDES, ["none"], OVERRIDES),
        ([], ["none"], []),
    ],
)
def test_a_key_ends_the_values_of_an_option(arguments, images, opts):
    assert parsed(*arguments)[::2] == (images, opts)


def test_a_file_is_not_a_key(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "MODEL.PNG").touch()
    assert parsed("--image", "MODEL.PNG", *OVERRIDES)[::2] == (["MODEL.PNG"], OVERRIDES)


def test_an_option_without_values_is_refused(capsys):
    with pytest.raises(SystemExit):
        parsed("--image", *OVERRIDES)
    assert "argument --image: expected at least one argument before MODEL.DEVICE" in capsys.readouterr().err


def test_output_folders(tmp_path, monkeypatch):
    assert output_folder("--output", tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(SetupError, match=r"--output '.*' cannot be created"):
            output_folder("--output", path)
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(SetupError, match=r"--output-dir '.*a' cannot be written to"):
        output_folder("--output-dir", tmp_path / "a")
