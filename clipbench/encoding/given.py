"""Features that are there already, in arrays of somebody's: copied into the store, where all else reads them."""

from __future__ import annotations

from clipbench.data.embeddings import Rows
from clipbench.encoding.feature_store import FeatureFile
from clipbench.utils.stages import stage


@stage("read embeddings")
def keep(file: FeatureFile, rows: Rows, *, unit: bool) -> None:
    """Copy `rows` into `file` where they are not there; with `unit` as rows of unit length.

    Raises:
        DataError: a row is not finite, or all 0.
        StorageError: no room for them; finished shards are kept.
    """
    if file.complete():
        return
    rows.check()
    with file.lock():
        file.begin(rows.described)
        for shard in file.missing():
            file.write(shard, rows.read(file.shard_rows(shard), unit=unit), device="none")
