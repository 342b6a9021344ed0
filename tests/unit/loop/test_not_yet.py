"""Settings that this version knows and does not act on are refused, never ignored."""

import pytest

from mulle.core.errors import SpecError
from mulle.loop.wiring import open_project


@pytest.mark.parametrize(
    "line",
    ['engine = "airflow"', 'secrets = "vault://kv/churn"'],
    ids=["another engine", "a vault"],
)
def test_what_would_be_ignored_is_refused(tmp_path, line):
    """An operator who sets a key may rely on it: here that means an error, at the first command."""
    (tmp_path / "mulle.toml").write_text(f'[project]\nname = "p"\n[env.production]\n{line}\n', encoding="utf-8")

    with pytest.raises(SpecError) as caught:
        open_project(tmp_path, "production")

    assert caught.value.code == "setting-not-yet"
    assert open_project(tmp_path, "local")[0].environment == "local"
