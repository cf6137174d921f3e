"""Checkpoints that are committed or do not exist.

In the run directory, or below the run's prefix in S3:

    checkpoints/step=00000120/state.pt          with trainer.strategy=fsdp, shards/*
    checkpoints/step=00000120/manifest.json     written last: size and xxh3_128 of every file
    checkpoints/step=00000120-val/              of the same step, after it was validated
    checkpoints/step=00000120-end/              of the same step, at the end of its epoch

What has no manifest is not a checkpoint, whatever else it holds. A reader checks sizes and digests
and takes the newest checkpoint that is whole. No save touches one that is whole: each position of
a run has a name of its own. Old ones are deleted after a new one was committed, manifest first.

    folder.py, bucket.py    the two kinds of places, and how each writes a file whole or not at all
    store.py                the checkpoints of a run: which there are, are whole, are kept
    writing.py              saves behind training
    reading.py              loads, with the digest taken on the way
    shards.py               the files of sharded ones, for torch.distributed.checkpoint
    commands.py             hydra-trainer checkpoint list, verify, export

When to save, and what, is in callbacks.py.
"""
