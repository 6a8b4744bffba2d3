"""The page for users of the public scripts names every flag of theirs and only keys of ours."""

import re

from tests import ROOT
from tests.config.test_config import all_fields

# The flags of the public scripts, by script.
PUBLIC_FLAGS = [
    "batch_size",
    "lr",
    "optim",
    "n_epochs",
    "lr_step_size",
    "n_f_pretrain_epochs",
    "n_g_pretrain_epochs",
    "f_lambda_outer",
    "g_lambda_inner",
    "n_g_update",
    "update_g_cls",
    "outer_criterion",
    "inner_criterion",
    "rbf_sigma_scale_x",
    "rbf_sigma_scale_y",
    "rbf_sigma_x",
    "rbf_sigma_y",
    "update_sigma_per_epoch",
    "sigma_update_sampling_rate",
    "hsic_alg",
    "feature_pos",
    "n_g_nets",
    "val_epoch_step",
    "log_step",
    "save_dir",
    "root",
    "train_correlation",
    "n_confusing_labels",
    "f_kernel_size",
    "g_kernel_size",
    "train_root",
    "val_root",
    "imageneta_root",
    "num_classes",
    "scheduler",
    "final_bottleneck_dim",
]


def migration_rows() -> list[list[str]]:
    text = (ROOT / "docs/migration.md").read_text(encoding="utf-8")
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in row] for row in rows]


def test_the_migration_table_has_every_public_flag_once():
    flags = [row[0].strip("`") for row in migration_rows()]
    assert sorted(flags) == sorted(PUBLIC_FLAGS)


def test_the_migration_table_names_keys_that_exist():
    known = {dotted for dotted, _ in all_fields()}
    for row in migration_rows():
        keys = re.findall(r"`([^`]+)`", row[1])
        assert keys or row[1] == "not offered", row
        assert set(keys) <= known, row
        if not keys:
            assert len(row) == 3, f"{row[0]}: why is it not offered?"
        noted = re.findall(r"`([a-z]+\.[a-z_.0-9]+)`", " ".join(row[2:]))
        assert {key for key in noted if ":" not in key} <= known, row
