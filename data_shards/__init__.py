"""WebDataset shards with a manifest and an index: made, checked and described without torch."""
