"""The variants of a study that launch/audit.sh trains on: what is held out, and what is made untrue on purpose."""

import json
from collections.abc import Sequence
from typing import Any

from neuroimagen.audit.verdicts import VARIANTS
from neuroimagen.config import load_config
from neuroimagen.shards.tars import ShardsConfig
from neuroimagen.studies.open import open_study


def allowed(arguments: Sequence[str], wanted: Sequence[str]) -> tuple[dict[str, list[str]], list[str]]:
    """The variants of the study that these arguments of `neuroimagen shards` name, and why others cannot be: sentences.

    wanted: names; empty: all that the study allows. ValueError for a wanted one that is unknown, or that it does not.
    """
    study = open_study(load_config(ShardsConfig, arguments, "shards"))
    people = sorted({study.facts(int(i)).subject for own in study.splits.values() for i in own})
    options = VARIANTS["networks"] | {f"subject-{n}": {"hold_out_subject": str(n)} for n in people if len(people) > 1}
    known = {name: [f"{key}={_written(v)}" for key, v in given.items()] for name, given in options.items()}
    if unknown := [name for name in wanted if name not in known]:
        raise ValueError(f"{unknown[0]!r} is no variant of this study; it may have {', '.join(known)}")
    found, refused = {}, []
    for name in wanted or known:
        try:
            if known[name]:
                open_study(load_config(ShardsConfig, [*arguments, *known[name]], "shards"))
            found[name] = known[name]
        except ValueError as error:
            if wanted:
                raise ValueError(f"{name}: {error}") from None
            refused.append(f"{name} is left out: {error}")
    return found, refused


def _written(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
