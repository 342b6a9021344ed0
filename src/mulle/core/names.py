"""Names that become folders, URLs and metric labels: checked once, here."""

import re
import unicodedata

from mulle.core.errors import SpecError

_NAME = re.compile(r"[^\W_][\w.\-]{0,62}", re.UNICODE)
_RESERVED = frozenset({"con", "prn", "aux", "nul", "all", "latest"})


def require_name(text: str, what: str) -> str:
    r"""Return `text` if it can be the name of a project, dataset, deployment or model.

    Letters and digits of any script (Korean included), then also `.`, `_` and `-`; at most 63 characters. It must be
    in Unicode's composed form, so that one name has one spelling on every file system.

    Raises:
        SpecError: empty, too long, hostile (`../x`, `/x`, `C:\x`), reserved, or not composed.
    """
    ok = (
        _NAME.fullmatch(text) is not None
        and ".." not in text
        and not text.endswith(".")
        and text.casefold() not in _RESERVED
        and unicodedata.is_normalized("NFC", text)
    )
    if not ok:
        raise SpecError(
            "name-invalid",
            f"{what} cannot be called {text[:80]!r}",
            fix="use letters or digits of any script, then also '.', '_' and '-': at most 63 characters, no '..'",
        )
    return text
