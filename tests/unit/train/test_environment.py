"""Where a run happened: commit, dirtiness, distributions."""

import subprocess

import pytest

from mulle.train.environment import describe_environment, read_commit, used_distributions


def _git(folder, *arguments):
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.com"]
    subprocess.run(["git", *identity, "-C", str(folder), *arguments], check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path):
    """Return a repository with one commit."""
    _git(tmp_path, "init", "-q")
    (tmp_path / "프로젝트.py").write_text("x = 1\n", encoding="utf-8")
    _git(tmp_path, "add", "-A")
    _git(tmp_path, "commit", "-qm", "first")
    return tmp_path


def test_a_clean_commit(repository):
    """40 digits, not dirty."""
    commit = read_commit(repository)

    assert commit is not None
    assert (len(commit.digest), commit.dirty) == (40, False)


def test_a_new_file_is_dirty(repository):
    """What is not committed cannot be reproduced."""
    (repository / "new.py").write_text("", encoding="utf-8")

    assert read_commit(repository).dirty is True


def test_no_repository_is_none(tmp_path):
    """Outside git there is no commit, and no error."""
    assert read_commit(tmp_path) is None


def test_only_distributions_that_were_imported_count():
    """Top-level modules map to the distributions that provide them."""
    found = used_distributions(["numpy.linalg", "sklearn", "json"])

    assert set(found) == {"numpy", "scikit-learn"}


def test_the_environment_is_plain_json(tmp_path):
    """All fields are there."""
    assert set(describe_environment(tmp_path).to_dict()) == {"commit", "dirty", "python", "platform", "cpu_count", "distributions"}
