"""What a newcomer types by mistake, and whether the answer says what to type instead."""

import pytest

from mulle.apps.cli.main import main
from mulle.loop.templates import write_template

MISTAKES = [
    pytest.param(["rn"], "command-unknown", "mulle run", id="a slip of the finger"),
    pytest.param(["zzz"], "command-unknown", "mulle --help", id="a command there is not"),
    pytest.param(["init", "chrun", "x"], "template-unknown", "'churn'", id="a misspelt template"),
    pytest.param(["serve"], "serve-nothing", "mulle run", id="serving before anything was made"),
    pytest.param(["up"], "up-nothing-to-serve", "mulle run", id="starting everything before anything was made"),
    pytest.param(["predict", "--row", "{}"], "deployment-unknown", "mulle run", id="predicting before anything was made"),
    pytest.param(["monitor", "check"], "monitor-nothing-served", "mulle run", id="monitoring before anything was served"),
    pytest.param(["trace", "abc"], "prediction-unknown", "mulle-prediction-id", id="an id nobody gave out"),
    pytest.param(["models", "promote", "1"], "version-unknown", "mulle run", id="promoting what is not there"),
    pytest.param(["run", "--env", "prod"], "config-environment", "local", id="an environment nobody described"),
]


@pytest.mark.parametrize(("command", "code", "fix"), MISTAKES)
def test_a_mistake_is_answered_with_the_next_thing_to_type(tmp_path, capsys, monkeypatch, command, code, fix):
    """One error, exit code 2, no traceback, and the fix is a command or a name."""
    write_template("blank", tmp_path / "p", project_name="p")
    monkeypatch.chdir(tmp_path / "p")
    exit_code = main(command)
    printed = capsys.readouterr()

    assert exit_code == 2
    assert f"error[{code}]" in printed.err
    assert fix in printed.err
    assert "Traceback" not in printed.err + printed.out


def test_outside_a_project_the_way_in_is_named(tmp_path, capsys, monkeypatch):
    """The folder is named as the person knows it, and so is the command that makes a project."""
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")

    assert main(["run"]) == 2
    printed = capsys.readouterr().err
    assert "no mulle.toml in 'empty'" in printed
    assert "mulle init churn" in printed
