"""Defaults that the command line and the Python functions share; light enough for `--help`."""

from pathlib import Path

RUNS = Path("runs")
STORE = RUNS / "ledger.sqlite"
EVALUATION_STORE = RUNS / "evaluation.sqlite"  # apart, so that measuring never eats the budget
TRUTHS = "ground-truth"  # folder beside it: pickled ground truth as JSON
DEVICE = "cpu"
MOST_QUERIES = 2**53  # no budget is larger
SERVED_BATCH = 32  # images a server is asked about at once
RECIPE = "best"
SELECTION = "random"
OPSET = 20
MIN_OVERLAP = 0.9  # of a variant's ten nearest with those of float32
MAX_DROP = 0.01  # of the overlap with the teacher's ten nearest, beside float32
LATENCY_SECONDS = 20.0
LATENCY_THREADS = 1
TIMEOUT = 120.0  # seconds a server may take for one batch
TOLERANCE = 0.05  # by which two times may differ and be the same
BENCH_FORMAT = "distilltool"
BENCH_FORMATS = (BENCH_FORMAT, "github-action-benchmark")
NAME = 48  # letters taken over into a file's name, which may have 255 bytes
