"""Files that `pulumi up` sends to the cluster, and that run there. They import nothing of this project."""
