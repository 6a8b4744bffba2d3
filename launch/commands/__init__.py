"""The subcommands of ``rebias-launch``, and ``rebias-sweep``."""
