"""The console scripts: they parse first and import torch later, so that --help is quick."""
