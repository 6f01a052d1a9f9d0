"""The released data set: reads the raw release, builds Parquet, validates, describes and publishes it."""
