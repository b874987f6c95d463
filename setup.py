"""What pyproject.toml cannot say: the folder `configs/` is installed inside the package, as `sparsercnn/configs/`."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["sparsercnn*", "necks*", "efficientdet*"]), "sparsercnn.configs"],
    package_dir={"sparsercnn.configs": "configs"},
    package_data={"sparsercnn.configs": ["**/*.yaml"]},
)
