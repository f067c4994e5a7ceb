"""Runs one of the package's launch files until SIGINT, as ``ros2 launch`` does.

python run_launch_file.py perception.launch.py device:=cpu
"""

from __future__ import annotations

import sys
from pathlib import Path

from launch import LaunchDescription, LaunchService
from launch.actions import IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource

LAUNCH_FOLDER = Path(__file__).resolve().parents[2] / "launch"


def main() -> int:
    source = PythonLaunchDescriptionSource(str(LAUNCH_FOLDER / sys.argv[1]))
    arguments = [tuple(argument.split(":=", 1)) for argument in sys.argv[2:]]
    service = LaunchService()
    service.include_launch_description(
        LaunchDescription([IncludeLaunchDescription(source, launch_arguments=arguments)])
    )
    return int(service.run())


if __name__ == "__main__":
    sys.exit(main())
