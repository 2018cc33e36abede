"""The ground floor: errors, bounded readers, digests, manifests, the artefact store and Zarr shards."""
