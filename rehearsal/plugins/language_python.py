"""A stand-in for `pulumi-language-python`, which runs Python programs for the Pulumi engine.

The engine starts this file as `pulumi-language-python ENGINE_ADDRESS` in the stand-ins' environment. Each run of a
program is this file again, as `--run ENGINE_ADDRESS`, in the program's own environment.
"""

import asyncio
import contextlib
import os
import shutil
import sys
from pathlib import Path

ALREADY_SHOWN = 32  # exit status of a program that has already printed its error


def python_of(info) -> str:
    """The interpreter that `runtime.options` in Pulumi.yaml select. Raises ValueError with the remedy."""
    options = dict(info.options)
    toolchain = options.get("toolchain", "pip")
    if toolchain != "pip":
        raise ValueError(
            f"runtime option toolchain: {toolchain} in Pulumi.yaml: the stand-in for language-python supports "
            "only pip; install the official plugin, or set `virtualenv`"
        )
    if virtualenv := options.get("virtualenv"):
        python = Path(info.root_directory, virtualenv, "bin", "python")
        if not python.exists():
            raise ValueError(
                f"runtime option virtualenv: {virtualenv} in Pulumi.yaml: {python} does not exist; create it with "
                f"`python3 -m venv {virtualenv}` and install the program's requirements into it"
            )
        return str(python)
    for name in (os.environ.get("PULUMI_PYTHON_CMD"), "python3", "python"):
        if name and (found := shutil.which(name)):
            return found
    raise ValueError("python3 is not on PATH; install Python, or set `virtualenv` in Pulumi.yaml")


def host() -> None:
    """Serve the engine."""
    import serving
    from serving import proto

    class Host(serving.Plugin, proto.language_pb2_grpc.LanguageRuntimeServicer):
        register = staticmethod(proto.language_pb2_grpc.add_LanguageRuntimeServicer_to_server)

        async def Handshake(self, request, context):
            return proto.language_pb2.LanguageHandshakeResponse()

        async def GetRequiredPlugins(self, request, context):
            return proto.language_pb2.GetRequiredPluginsResponse()

        async def GetRequiredPackages(self, request, context):
            return proto.language_pb2.GetRequiredPackagesResponse()

        async def GetProgramDependencies(self, request, context):
            return proto.language_pb2.GetProgramDependenciesResponse()

        async def About(self, request, context):
            try:
                python = python_of(request.info)
            except ValueError as error:
                await context.abort(serving.grpc.StatusCode.FAILED_PRECONDITION, str(error))
            program = await asyncio.create_subprocess_exec(
                python, "-c", "import platform; print(platform.python_version())", stdout=asyncio.subprocess.PIPE
            )
            version, _ = await program.communicate()
            return proto.language_pb2.AboutResponse(executable=python, version=version.decode().strip())

        async def Run(self, request, context):
            try:
                python = python_of(request.info)
            except ValueError as error:
                return proto.language_pb2.RunResponse(error=str(error))
            status = await self.ending_with_me(self._program(python, request))
            if status == ALREADY_SHOWN:
                return proto.language_pb2.RunResponse(bail=True)
            error = f"Program exited with non-zero exit code: {status}" if status else ""
            return proto.language_pb2.RunResponse(error=error)

        async def _program(self, python, request) -> int:
            program = await asyncio.create_subprocess_exec(
                python, "-u", __file__, "--run", self.engine.address, stdin=asyncio.subprocess.PIPE, cwd=request.pwd
            )
            try:
                # Use stdin, because the configuration contains secrets, and command lines are public.
                await program.communicate(request.SerializeToString())
            except asyncio.CancelledError:
                with contextlib.suppress(ProcessLookupError):
                    program.terminate()
            return await program.wait()

    asyncio.run(Host().serve())


def run(engine_address: str) -> int:
    """Run the program of the request on stdin, and return its exit status."""
    import logging
    import runpy
    import traceback
    from concurrent.futures import ThreadPoolExecutor

    import pulumi
    from pulumi.runtime.proto import language_pb2

    request = language_pb2.RunRequest.FromString(sys.stdin.buffer.read())
    program = os.path.normpath(os.path.join(request.info.program_directory, request.info.entry_point))
    os.chdir(request.info.program_directory)
    sys.argv = [program, *request.args]
    sys.path[0] = request.info.program_directory

    pulumi.runtime.set_all_config(dict(request.config), list(request.configSecretKeys))
    pulumi.runtime.configure(
        pulumi.runtime.Settings(
            project=request.project,
            root_directory=request.info.root_directory,
            stack=request.stack,
            parallel=request.parallel,
            engine=engine_address,
            monitor=request.monitor_address,
            dry_run=request.dryRun,
            organization=request.organization,
        )
    )
    # A failed program leaves futures that are never awaited, and asyncio would log an error for each.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    loop.set_default_executor(ThreadPoolExecutor(max_workers=4 * max(request.parallel, 1)))

    async def main() -> None:
        await pulumi.runtime.run_in_stack(lambda: runpy.run_path(program, run_name="__main__"))

    try:
        loop.run_until_complete(main())
    except pulumi.RunError as error:
        pulumi.log.error(str(error))
        return 1
    except Exception as error:
        shown = traceback.TracebackException.from_exception(error)
        # Skip the frames of this file and the SDK above the program.
        inside = (n for n, frame in enumerate(shown.stack) if frame.filename.startswith(request.info.program_directory))
        shown.stack = traceback.StackSummary.from_list(shown.stack[next(inside, 0) :])
        pulumi.log.error("Program failed with an unhandled exception:\n" + "".join(shown.format()))
        return ALREADY_SHOWN
    return 0


if __name__ == "__main__":
    if sys.argv[1] == "--run":
        with contextlib.suppress(KeyboardInterrupt):
            sys.exit(run(sys.argv[2]))
        os._exit(130)  # the program's threads may still be waiting for a lost engine
    host()
