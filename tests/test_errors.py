from __future__ import annotations

import pytest

from gft_edge import errors
from gft_edge.cli.main import main


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.GFTEdgeError("x"), 2),
        (errors.ConfigError("x"), 2),
        (errors.ArtifactError("x"), 2),
        (errors.DataError("x"), 2),
        (errors.CheckFailed("x"), 1),
        (errors.MissingExtraError("torch", "train"), 3),
    ],
)
def test_every_error_is_of_the_family_and_has_its_exit_code(error, code):
    assert isinstance(error, errors.GFTEdgeError)
    assert error.exit_code == code


def test_config_errors_are_value_errors_and_missing_extras_are_import_errors():
    assert issubclass(errors.ConfigError, ValueError)
    assert issubclass(errors.MissingExtraError, ImportError)


def test_missing_extra_names_package_and_command():
    error = errors.MissingExtraError("onnxruntime", "onnx")
    assert str(error) == "onnxruntime is not installed; run: pip install 'gft-edge[onnx]'"
    assert (error.package, error.extra) == ("onnxruntime", "onnx")


def test_user_error_ends_the_command_line_with_2_and_one_line(tmp_path, capsys):
    code = main(["train", "--config", str(tmp_path / "none.toml"), "--out", str(tmp_path / "out")])
    captured = capsys.readouterr()
    assert code == 2
    assert captured.out == ""
    assert captured.err.startswith("gft-edge train: recipe ")
    assert captured.err.count("\n") == 1


def test_unknown_verb_ends_the_command_line_with_2():
    with pytest.raises(SystemExit) as stopped:
        main(["no-such-verb"])
    assert stopped.value.code == 2
