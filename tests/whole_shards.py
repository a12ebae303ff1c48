"""Shards of which every byte is verified, as `neuroimagen check` does it."""

from pathlib import Path

from neuroimagen.doctor.examination import Examination
from neuroimagen.doctor.shards import ShardStudy
from neuroimagen.shards.pack import summary
from neuroimagen.studies.study import Faults


def check_shards(shards: str | Path) -> str:
    """The report of a shard directory; ValueError, a sentence a line, with all that is not as the manifest says."""
    study = ShardStudy(shards, Faults(collect=True))
    Examination(study)
    if study.fault.found:
        raise ValueError("\n".join(study.fault.found))
    return summary(study.folder, study.manifest) + "every shard, trial and picture was read and is as the manifest says"
