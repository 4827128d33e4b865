"""What the files and folders of a run directory are called."""

CONFIG, METRICS, LOCK = "config.json", "metrics.jsonl", ".lock"
RESULTS, FIGURES, EVENTS = "results", "figures", "events"
