"""The console scripts. They parse first and import torch later, so that --help is quick."""
