"""Make, check and describe WebDataset shards with a manifest and an index, without torch."""
