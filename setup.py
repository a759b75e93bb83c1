"""What pyproject.toml cannot say: found packages, and others whose folder stands elsewhere."""

from setuptools import find_namespace_packages, find_packages, setup

# conf/ at the top is the package eigenexp.conf ([tool.setuptools.package-dir]), its groups are the
# packages in it: `packages.find` alone would not see them, and takes no addition.
groups = [f"eigenexp.conf.{name}" for name in find_namespace_packages("conf")]
setup(packages=[*find_packages(include=["eigenexp", "eigenexp.*"]), "eigenexp.conf", *groups])
