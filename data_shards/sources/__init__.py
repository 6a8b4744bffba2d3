"""Data sets that shards can be made from, one module each."""
