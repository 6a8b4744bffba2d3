"""Runs as JobSets of Kubernetes: the manifest, and what each pod runs."""
