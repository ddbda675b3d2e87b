"""A browser's side of a notebook server that this computer reaches at a local port."""

import asyncio
import json
import urllib.error
import urllib.parse
import urllib.request
import uuid
from http.cookiejar import CookieJar

from tornado.httpclient import HTTPRequest
from tornado.websocket import websocket_connect


def log_in(port: int, password: str, jar: CookieJar | None = None) -> bool:
    """Whether the login form of a notebook server accepts the password; it gives `jar` the browser's cookies."""
    base = f"http://127.0.0.1:{port}"
    jar = CookieJar() if jar is None else jar
    opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(jar))
    opener.open(f"{base}/login", timeout=30).read()
    form = urllib.parse.urlencode({"password": password, "_xsrf": cookie(jar, "_xsrf")}).encode()
    try:
        opener.open(f"{base}/login", form, timeout=30)
        return opener.open(f"{base}/api/contents", timeout=30).status == 200
    except urllib.error.HTTPError as error:
        assert error.code in (401, 403)
        return False


def cookie(jar: CookieJar, name: str) -> str | None:
    return next((each.value for each in jar if each.name == name), None)


def page(port: int, path: str, jar: CookieJar, method: str = "GET", body: dict | None = None) -> str:
    browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(jar))
    headers = {"X-XSRFToken": cookie(jar, "_xsrf") or ""}
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", method=method, headers=headers)
    request.data = json.dumps(body).encode() if body else None
    return browser.open(request, timeout=60).read().decode()


def run_cell(port: int, jar: CookieJar, code: str) -> str:
    """What the code prints in a new kernel of a notebook a.ipynb. Raises AssertionError with its traceback."""
    kernel = json.loads(page(port, "/api/kernels", jar, "POST", {"path": "a.ipynb"}))["id"]
    try:
        return asyncio.run(asyncio.wait_for(_run_cell(port, jar, kernel, code), 120))
    finally:
        page(port, f"/api/kernels/{kernel}", jar, "DELETE")


async def _run_cell(port: int, jar: CookieJar, kernel: str, code: str) -> str:
    cookies = "; ".join(f"{each.name}={each.value}" for each in jar)
    url = f"ws://127.0.0.1:{port}/api/kernels/{kernel}/channels"
    socket = await websocket_connect(HTTPRequest(url, headers={"Cookie": cookies}))
    header = {
        "msg_id": uuid.uuid4().hex,
        "msg_type": "execute_request",
        "version": "5.3",
        "session": "",
        "username": "",
    }
    content = {"code": code, "silent": False, "allow_stdin": False}
    message = {"channel": "shell", "header": header, "parent_header": {}, "metadata": {}, "content": content}
    await socket.write_message(json.dumps(message))
    printed = ""
    while answer := await socket.read_message():
        found = json.loads(answer)
        if found["parent_header"].get("msg_id") != header["msg_id"]:
            continue
        assert found["msg_type"] != "error", "\n".join(found["content"]["traceback"])
        if found["msg_type"] == "stream":
            printed += found["content"]["text"]
        if found["content"].get("execution_state") == "idle":
            break
    socket.close()
    return printed
