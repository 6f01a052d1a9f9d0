"""Everything about the package stands in setup.cfg, but what it cannot say: packages that are found and packages that
lie elsewhere (`package_dir` in setup.cfg says where)."""

from setuptools import find_packages, setup


setup(packages=[*find_packages(include=["uniedit_hf*"]), "uniedit_hf.dataset_builder", "uniedit_hf.demo"])
