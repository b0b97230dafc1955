"""Settings of every test process, in force before torch is imported."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run in parallel processes: one thread each
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ["WANDB_MODE"] = "offline"
os.environ["WANDB_SILENT"] = "true"
