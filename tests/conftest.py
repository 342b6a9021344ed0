"""What every test gets: a key folder of its own, no telemetry, a Hypothesis profile that does not depend on speed."""

import os
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# `from support.bundles import …`: what several tests build on, without making the tests a package.
sys.path.insert(0, str(Path(__file__).parent))

settings.register_profile("mulle", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
settings.load_profile("mulle")

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["DO_NOT_TRACK"] = "true"
os.environ.setdefault("NO_COLOR", "1")
# Read when OpenMP is loaded: spinning threads on shared cores make every fit many times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@pytest.fixture(autouse=True)
def own_key_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder this test's signing key lives in: never the developer's own."""
    home = tmp_path_factory.mktemp("mulle-home")
    monkeypatch.setenv("MULLE_HOME", str(home))
    return home


@pytest.fixture(scope="session")
def require_service():
    """Return a function that skips visibly when a tool is missing here, and fails when the tools were promised."""

    def check(present: bool, name: str, how: str) -> None:
        if present:
            return
        if os.environ.get("MULLE_REQUIRE_SERVICES"):
            pytest.fail(f"{name} is missing, and MULLE_REQUIRE_SERVICES is set: {how}")
        pytest.skip(f"{name} is not installed: {how}")

    return check
