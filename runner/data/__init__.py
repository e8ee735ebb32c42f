"""Real price series, as Parquet; README.md beside them says where each comes from."""
