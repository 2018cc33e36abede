"""The neural parametric head model: networks, losses, training, fitting, meshing, metrics and baselines."""
