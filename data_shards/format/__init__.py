"""The format of shards on disk: tars, the manifest and the index."""
