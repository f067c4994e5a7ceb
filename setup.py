"""The ament_python package: modules, and the files ROS 2 looks up by place.

The executables of the nodes are data files: so `ros2 run` and `ros2 launch` find them below
lib/edge_perception after `colcon build` and after `pip install` alike, while console scripts
would land there by colcon alone.
"""

from glob import glob

from setuptools import find_packages, setup

NAME = "edge_perception"
SHARE = f"share/{NAME}"

setup(
    name=NAME,
    version="0.1.0",
    description="Camera topics to detections and captions on an edge GPU, with known latency",
    license="Apache-2.0",
    maintainer="edge_perception maintainers",
    maintainer_email="maintainers@edge-perception.invalid",
    python_requires=">=3.10",
    packages=find_packages(include=[NAME, f"{NAME}.*"]),
    package_data={"": ["py.typed", "*.cu", "*.cuh", "*.json", "*.html", "*.css"]},
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{NAME}"]),
        (SHARE, ["package.xml"]),
        (f"{SHARE}/launch", glob("launch/*.launch.py")),
        (f"{SHARE}/config", glob("config/*.*")),
        (f"{SHARE}/config/devices", glob("config/devices/*.yaml")),
        (f"{SHARE}/config/models", glob("config/models/*.json")),
        (f"{SHARE}/config/planner", glob("config/planner/*.yaml")),
        (f"{SHARE}/demo", glob("demo/*.mcap")),
        (f"{SHARE}/engines", glob("engines/*.yaml") + glob("engines/*.onnx")),
        (f"{SHARE}/engines/demo_vlm", glob("engines/demo_vlm/*")),
        (f"lib/{NAME}", glob("scripts/nodes/*")),
    ],
    install_requires=["setuptools", "numpy>=1.21"],
    extras_require={"gpu": ["cuda-bindings>=12.6", "nvidia-cuda-nvrtc"]},
    zip_safe=False,
    entry_points={"console_scripts": ["edge-perception = edge_perception.cli:main"]},
)
