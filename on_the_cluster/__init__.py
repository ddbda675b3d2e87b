"""Programs that `pulumi up` sends to the cluster and that run there. They do not import this project."""
