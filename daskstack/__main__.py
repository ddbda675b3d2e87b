from daskstack.cli import main

main(prog_name="python -m daskstack")
