"""One module a step, plus the config, the workspace, the planner and the simulated rig."""
