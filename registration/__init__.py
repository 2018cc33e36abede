"""Geometry: meshes, frames, templates, capture fusion, alignment and non-rigid registration."""
