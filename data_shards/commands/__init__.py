"""The subcommands of ``python -m data_shards``, one module each."""
