"""Defaults that the command line and the Python functions share; light enough for `--help`."""

from pathlib import Path

RUNS = Path("runs")
STORE = RUNS / "ledger.sqlite"
EVALUATION_STORE = RUNS / "evaluation.sqlite"  # apart, so that measuring never eats the budget
DEVICE = "cpu"
RECIPE = "drd"
SELECTION = "random"
OPSET = 20
LATENCY_SECONDS = 20.0
LATENCY_THREADS = 1
