"""launcher=eks: the manifests of a job, and how it goes on the cluster."""
