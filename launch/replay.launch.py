"""A recording played through the perception graph; everything ends with the recording.

    ros2 launch edge_perception replay.launch.py source:=drive.mcap output_dir:=/tmp/drive

Arguments of perception.launch.py are taken too: device, manifest, params_file, processes, ...
"""

import os

from ament_index_python.packages import get_package_share_directory
from launch import LaunchDescription
from launch.actions import (
    DeclareLaunchArgument,
    EmitEvent,
    IncludeLaunchDescription,
    RegisterEventHandler,
)
from launch.event_handlers import OnProcessExit
from launch.events import Shutdown
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

PACKAGE = "edge_perception"

ARGUMENTS = [
    DeclareLaunchArgument(
        "source", description="Bag (MCAP or sqlite3), folder of images, video file or /dev/videoN."
    ),
    DeclareLaunchArgument("rate", default_value="1.0", description="Speed against the recording."),
    DeclareLaunchArgument(
        "fps", default_value="0.0", description="Images a second; 0 keeps the recorded times."
    ),
    DeclareLaunchArgument(
        "loop",
        default_value="false",
        choices=["true", "false"],
        description="Start again at the end, until interrupted.",
    ),
    DeclareLaunchArgument(
        "stamps",
        default_value="shifted",
        choices=["shifted", "recorded"],
        description="shifted: headers are moved to now; recorded: kept, and /clock is published.",
    ),
    DeclareLaunchArgument(
        "namespace", default_value="", description="Namespace of all nodes and relative topics."
    ),
]


def generate_launch_description() -> LaunchDescription:
    """Start the graph and the player; shut down when the player has ended."""
    launch_folder = os.path.join(get_package_share_directory(PACKAGE), "launch")
    perception = PythonLaunchDescriptionSource(os.path.join(launch_folder, "perception.launch.py"))
    player = Node(
        package=PACKAGE,
        executable="player",
        namespace=LaunchConfiguration("namespace"),
        parameters=[player_parameters()],
        output="screen",
    )
    end = EmitEvent(event=Shutdown(reason="the recording has been played"))
    return LaunchDescription(
        [
            *ARGUMENTS,
            # The player comes second: it inherits the environment that the graph needs.
            IncludeLaunchDescription(perception),
            player,
            RegisterEventHandler(OnProcessExit(target_action=player, on_exit=[end])),
        ]
    )


def player_parameters() -> dict[str, ParameterValue | bool]:
    """Return the player's parameters, each argument read as the type that it has."""
    types = {"source": str, "rate": float, "fps": float, "loop": bool, "stamps": str}
    given = {
        name: ParameterValue(LaunchConfiguration(name), value_type=value_type)
        for name, value_type in types.items()
    }
    return {**given, "autostart": True}
