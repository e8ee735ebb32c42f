"""What the project claims of its speed, measured: one script a claim, ratios of figures taken in the same run."""
