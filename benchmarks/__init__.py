"""What the project claims of its speed, measured: one script a claim, ratios of figures taken in the same run."""

import os

os.environ.setdefault("TQDM_DISABLE", "1")  # backtesting.py draws a bar for each run; tqdm reads this as it is imported
