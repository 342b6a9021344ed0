"""One suite for every projection of the registry: a file, and a real MLflow on SQLite."""

import json
import shutil

import msgspec
import pytest

from mulle.core.errors import UnavailableError
from mulle.registry.mlflow_projection import MlflowProjection
from mulle.registry.projection_file import FileProjection
from mulle.registry.versions import VersionRecord

# MLflow's dependencies warn about themselves on import.
pytestmark = pytest.mark.filterwarnings("ignore")


class FileSide:
    """A file, and somebody with an editor."""

    def __init__(self, folder) -> None:
        self.path = folder / "projection.json"
        self.projection = FileProjection(self.path)

    def _edit(self, change) -> None:
        document = json.loads(self.path.read_text(encoding="utf-8"))
        change(document["이탈"])
        self.path.write_text(json.dumps(document), encoding="utf-8")

    def move_alias(self, alias: str, number: int) -> None:
        self._edit(lambda model: model["aliases"].update({alias: number}))

    def drop_alias(self, alias: str) -> None:
        self._edit(lambda model: model["aliases"].pop(alias))

    def edit_tag(self, number: int, name: str, value: str) -> None:
        self._edit(lambda model: model["versions"][str(number)].update({name: value}))

    def remove_version(self, number: int) -> None:
        self._edit(lambda model: model["versions"].pop(str(number)))

    def aliases(self) -> dict[str, int]:
        return json.loads(self.path.read_text(encoding="utf-8"))["이탈"]["aliases"]

    def break_it(self) -> None:
        self.path.write_text("{", encoding="utf-8")


class MlflowSide:
    """An MLflow, and somebody in its web pages."""

    def __init__(self, folder, template) -> None:
        from mlflow.tracking import MlflowClient

        self.database = folder / "mlflow.db"
        shutil.copyfile(template, self.database)
        uri = f"sqlite:///{self.database}"
        self.projection = MlflowProjection(uri, str(folder / "artifacts"), self._build)
        self.client = MlflowClient(tracking_uri=uri, registry_uri=uri)

    def _build(self, version: VersionRecord, out) -> None:
        out.mkdir()
        (out / "MLmodel").write_text("flavors: {}\n", encoding="utf-8")

    def _theirs(self, number: int) -> str:
        found = self.client.search_model_versions("name='이탈'")
        return next(str(one.version) for one in found if one.tags.get("mulle.version") == str(number))

    def move_alias(self, alias: str, number: int) -> None:
        self.client.set_registered_model_alias("이탈", alias, self._theirs(number))

    def drop_alias(self, alias: str) -> None:
        self.client.delete_registered_model_alias("이탈", alias)

    def edit_tag(self, number: int, name: str, value: str) -> None:
        self.client.set_model_version_tag("이탈", self._theirs(number), name, value)

    def remove_version(self, number: int) -> None:
        self.client.delete_model_version("이탈", self._theirs(number))

    def aliases(self) -> dict[str, int]:
        numbers = {str(one.version): int(one.tags["mulle.version"]) for one in self.client.search_model_versions("name='이탈'")}
        return {name: numbers[str(version)] for name, version in dict(self.client.get_registered_model("이탈").aliases).items()}

    def break_it(self) -> None:
        self.database.write_bytes(b"no database" * 1000)


@pytest.fixture(scope="module")
def migrated(tmp_path_factory):
    """Return an empty MLflow database, migrated once."""
    from mlflow.tracking import MlflowClient

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture(params=["file", "mlflow"])
def side(request, tmp_path):
    """Return each projection with the means to edit it behind our back."""
    return FileSide(tmp_path) if request.param == "file" else MlflowSide(tmp_path, request.getfixturevalue("migrated"))


def version(number: int, **fields) -> VersionRecord:
    return VersionRecord(
        model="이탈", number=number, bundle_digest=str(number) * 64, bundle_path="bundles/x", git_commit="c" * 40, dataset="고객", **fields
    )


@pytest.fixture
def published(side):
    """Return a projection that knows two versions, the first of them champion."""
    for number in (1, 2):
        side.projection.publish_version(version(number))
    side.projection.publish_aliases("이탈", {"champion": 1, "challenger": 2})
    return side


KNOWN = (version(1), version(2))


def test_what_was_told_is_there_and_telling_again_changes_nothing(published):
    """Publishing is idempotent, and nothing looks edited."""
    published.projection.publish_version(version(1))
    published.projection.publish_aliases("이탈", {"champion": 1, "challenger": 2})

    assert {"champion": 1, "challenger": 2} == published.aliases()
    assert () == published.projection.find_drift("이탈", KNOWN)


def test_aliases_move_and_go(published):
    """An alias that is not named any more is removed; our own moves are not edits."""
    published.projection.publish_aliases("이탈", {"champion": 2})

    assert {"champion": 2} == published.aliases()
    assert () == published.projection.find_drift("이탈", KNOWN)


def test_a_model_nobody_published_has_not_drifted(side):
    """Nothing was told, so nothing can differ."""
    assert () == side.projection.find_drift("이탈", ())


@pytest.mark.parametrize(
    ("edit", "what"),
    [
        pytest.param(lambda side: side.move_alias("champion", 2), "alias champion", id="an alias moved"),
        pytest.param(lambda side: side.drop_alias("challenger"), "alias challenger", id="an alias removed"),
        pytest.param(lambda side: side.edit_tag(1, "mulle.commit", "f" * 40), "tag mulle.commit of version 1", id="a tag edited"),
        pytest.param(lambda side: side.remove_version(2), "version 2", id="a version removed"),
    ],
)
def test_an_edit_is_found_and_telling_again_repairs_it(published, edit, what):
    """Each edit is named; publishing what the log says puts it right."""
    edit(published)
    found = [drift.what for drift in published.projection.find_drift("이탈", KNOWN)]
    for one in KNOWN:
        published.projection.publish_version(one)
    published.projection.publish_aliases("이탈", {"champion": 1, "challenger": 2})

    assert what in found
    assert {"champion": 1, "challenger": 2} == published.aliases()
    assert () == published.projection.find_drift("이탈", KNOWN)


def test_somebodys_own_tags_and_aliases_are_theirs(published):
    """What Mulle does not write is neither reported nor removed."""
    published.move_alias("내것", 1)
    published.edit_tag(1, "note", "mine")
    published.projection.publish_aliases("이탈", {"champion": 2})

    assert {"champion": 2, "내것": 1} == published.aliases()
    assert () == published.projection.find_drift("이탈", KNOWN)


def test_an_override_that_was_not_told_yet_is_no_edit(published):
    """The second step of registering against a verdict is carried out, not reported."""
    overridden = msgspec.structs.replace(version(2), overridden_by="민지")

    assert () == published.projection.find_drift("이탈", (version(1), overridden))
    published.projection.publish_version(overridden)
    published.edit_tag(2, "mulle.overridden_by", "mallory")
    assert 1 == len(published.projection.find_drift("이탈", (version(1), overridden)))


def test_a_projection_that_cannot_be_read_is_unavailable(published):
    """Whatever breaks there is one class of error here: try again later."""
    published.break_it()

    with pytest.raises(UnavailableError):
        published.projection.find_drift("이탈", KNOWN)
