"""What each example prints, apart from numbers that depend on the run."""

PRINTS = {
    "explain_with_shap": r"most important: feature 0 \(0\.\d+\), feature 1 ",
    "first_steps": r"mean of 100 million random numbers: 0\.500",
    "larger_than_memory": r"means of 1000 columns, from 0\.49\d+ to 0\.50",
    "machine_learning": r"1 of 1 examples succeeded",
    "save_checkpoints": r"starting after round 0\nstarting after round 10\nweights \[ 1. -2.  3.\]",
    "search_hyperparameters": r"best of 6: .*, accuracy 0\.9",
    "share_parquet": r"151,\d\d\d of 604,800 rows have x > 0.5\nthis computer read the first of 7 files: 86,400 rows",
    "train_lightgbm": r"error 0\.1\d*, standard deviation of the targets 1\.",
    "train_xgboost": r"error 0\.\d+ after 40 rounds",
}
