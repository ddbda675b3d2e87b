"""Resources of the stand-in for the Pulumi plugin `command`, one module each."""
