"""What the kernel tells about the machine in /proc and /sys: power, heat, memory, pressure, processors, clocks."""
