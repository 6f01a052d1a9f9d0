"""The loading script of the data set `uniedit-148k`, installed as `uniedit_hf.dataset_builder`."""
