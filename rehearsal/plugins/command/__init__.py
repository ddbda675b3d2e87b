"""What the stand-in for the Pulumi plugin `command` does, one module per kind of resource."""
