"""Where results lie: Optuna's journal with one writer, or a database."""
