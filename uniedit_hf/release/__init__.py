"""The data set as a release: read the raw one, build Parquet, validate, describe and publish it."""
