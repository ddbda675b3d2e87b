"""Programs that `pulumi up` runs on this computer, as local Commands. They import nothing of Pulumi."""
