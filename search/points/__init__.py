"""Operating points as rows of Parquet files: their schema, how rows are made, written and read."""
