"""The perception graph: cameras, detector, VLM and profiler, in one process or in one each.

    ros2 launch edge_perception perception.launch.py device:=orin image:=/front/image_raw

Every node brings itself to active when its process starts, after a respawn as well, so nothing
here has to follow its transitions, and a deactivation by an operator is never undone. Let a
lifecycle manager do it instead with autostart:=false.
"""

import os

from ament_index_python.packages import get_package_share_directory
from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction, SetEnvironmentVariable
from launch.substitutions import EnvironmentVariable
from launch_ros.actions import Node

PACKAGE = "edge_perception"
SHARE = get_package_share_directory(PACKAGE)
NODES = ("camera", "detector", "vlm", "profiler")

ARGUMENTS = [
    DeclareLaunchArgument(
        "device",
        default_value="cpu",
        choices=["cpu", "rtx3090", "orin"],
        description="Device profile: which of the package's config/*.yaml is read first.",
    ),
    DeclareLaunchArgument(
        "image",
        default_value="image",
        description="Image topic; compressed images are looked for on <image>/compressed.",
    ),
    DeclareLaunchArgument(
        "manifest",
        default_value="",
        description="Manifest of the detector's model; empty for the profile's.",
    ),
    DeclareLaunchArgument(
        "vlm",
        default_value="",
        description="Model of the VLM node: a manifest, a transformers checkpoint's directory, or"
        " demo for the embedded one; empty for no VLM.",
    ),
    DeclareLaunchArgument(
        "params_file",
        default_value="",
        description="YAML file of parameters, read after the device profile.",
    ),
    DeclareLaunchArgument(
        "namespace", default_value="", description="Namespace of all nodes and relative topics."
    ),
    DeclareLaunchArgument(
        "processes",
        default_value="single",
        choices=["single", "separate"],
        description="single: all nodes in one process; separate: one process a node.",
    ),
    DeclareLaunchArgument(
        "autostart",
        default_value="true",
        choices=["true", "false"],
        description="Configure and activate the nodes when they start.",
    ),
    DeclareLaunchArgument(
        "use_sim_time",
        default_value="false",
        choices=["true", "false"],
        description="Take the time from /clock, as with ros2 bag play --clock.",
    ),
    DeclareLaunchArgument(
        "output_dir",
        default_value="",
        description="Folder for the profiler's ledger and trace; empty writes none.",
    ),
    DeclareLaunchArgument(
        "debug",
        default_value="false",
        choices=["true", "false"],
        description="Log what the nodes do at each frame.",
    ),
]


def generate_launch_description() -> LaunchDescription:
    """Declare the arguments, prepare the environment, start the processes."""
    return LaunchDescription([*ARGUMENTS, *environment(), OpaqueFunction(function=processes)])


def environment() -> list[SetEnvironmentVariable]:
    """Give Fast DDS a segment that fits images, and let nodes end when the launch is killed."""
    profile = os.path.join(SHARE, "config", "fastdds.xml")
    variable = "FASTRTPS_DEFAULT_PROFILES_FILE"
    return [
        SetEnvironmentVariable(variable, EnvironmentVariable(variable, default_value=profile)),
        SetEnvironmentVariable("EDGE_PERCEPTION_END_WITH_PARENT", "1"),
    ]


def processes(context: LaunchContext) -> list[Node]:
    """Return the container, or a process for each node, as the arguments say."""
    value = context.launch_configurations
    separate = value["processes"] == "separate"
    nodes = [node for node in NODES if node != "vlm" or value["vlm"]]
    executables = nodes if separate else ["container"]
    return [
        Node(
            package=PACKAGE,
            executable=executable,
            # One name for all would be given to each node of the container alike.
            name=executable if separate else None,
            namespace=value["namespace"],
            parameters=parameters(value, executable),
            remappings=[
                ("image", value["image"]),
                ("image/compressed", f"{value['image']}/compressed"),
            ],
            ros_arguments=["--log-level", "debug" if value["debug"] == "true" else "info"],
            output="screen",
            respawn=True,
            respawn_delay=2.0,
        )
        for executable in executables
    ]


def parameters(value: dict[str, str], executable: str) -> list[str | dict[str, str | bool]]:
    """Return the device profile, the user's file and what the arguments say, in this order.

    What they do not say is left out, or it would win over the user's file.
    """
    files = [os.path.join(SHARE, "config", f"{value['device']}.yaml"), value["params_file"]]
    said: dict[str, str | bool] = {"autostart": value["autostart"] == "true"}
    said |= {name: value[name] for name in ("manifest", "output_dir") if value[name]}
    if value["use_sim_time"] == "true":
        said["use_sim_time"] = True
    if value["vlm"]:
        said["vlm"] = True
    if value["vlm"] not in ("", "demo"):
        said["model"] = value["vlm"]
    if executable == "camera":  # in a process of its own it has its readers elsewhere
        said["share_frames"] = True
    return [*(file for file in files if file), said]
