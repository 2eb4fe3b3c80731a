"""Installation of the ROS 2 package shmserve_ros (ament_python)."""

from setuptools import setup

NAME = "shmserve_ros"

setup(
    name=NAME,
    version="0.1.0",
    description="A node that asks a policy of a shmserve daemon: topics in, actions out",
    license="Apache-2.0",
    packages=[NAME],
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{NAME}"]),
        (f"share/{NAME}", ["package.xml"]),
        (f"share/{NAME}/launch", ["launch/policy.launch.py"]),
        (f"share/{NAME}/config", ["config/policy.yaml"]),
    ],
    install_requires=["setuptools", "shmserve"],
    entry_points={"console_scripts": [f"policy = {NAME}.node:main"]},
)
