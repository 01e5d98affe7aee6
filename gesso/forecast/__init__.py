"""What a run will take, told before it starts: parameters, disk, memory, time. All of it arithmetic on headers."""
