"""Programs that `pulumi up` runs on this computer, as local Commands. They do not import Pulumi."""
